"""SIGTERM saves a checkpoint and ends the run."""

import signal
from dataclasses import dataclass

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy


class Preempted(Exception):
    """SIGTERM came, and a checkpoint was saved; the message names it."""


@dataclass
class SaveOnSigterm(TrainerCallback):
    """On SIGTERM, save a checkpoint after the step that is being taken, and leave by raising `Preempted`.

    Where that step ends an epoch, the epoch's evaluation comes first: a resumed run would begin with the next one.
    """

    is_asked_to_leave: bool = False  # this process has got the signal
    is_leaving: bool = False  # all processes know

    def on_train_begin(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, *signal_and_frame):
        self.is_asked_to_leave = True

    def on_step_end(self, args, state, control, **kwargs):
        self.is_leaving = self.is_asked_to_leave
        if args.world_size > 1:  # the signal may reach the processes at different steps, or only one of them
            asked = torch.tensor(float(self.is_asked_to_leave), device=args.device)
            torch.distributed.all_reduce(asked)
            self.is_leaving = asked.item() > 0
        ends_epoch = control.should_training_stop or abs(state.epoch - round(state.epoch)) < 1e-6
        if not (ends_epoch and args.eval_strategy == IntervalStrategy.EPOCH):
            control.should_save |= self.is_leaving

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self.is_leaving

    def on_save(self, args, state, control, **kwargs):
        if self.is_leaving:  # not at the signal alone: the others would go on, and wait for this process
            raise Preempted(
                f"SIGTERM: {args.output_dir}/{PREFIX_CHECKPOINT_DIR}-{state.global_step} is saved. Go on with "
                "the same command and --resume_from_checkpoint true."
            )

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
