"""What happens between steps: early stopping, the time limit, progress lines, sheets of samples."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState, ProgressCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.streaming import TokenStream
from ..data.tokenized import TokenDataset
from .checkpoints import report_last_checkpoint, verify_checkpoint


logger = logging.getLogger(__name__)


class PatientEarlyStopping(EarlyStoppingCallback):
    """Early stopping that looks at the validation split's evaluation only; the others do not have its metric.

    A resumed run has used up the patience that its checkpoint says, and may have none left. Patience 0 has no end.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if args.load_best_model_at_end:  # else transformers warns that this was asked for
            super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0:  # not resumed, perhaps the second `train()` of one Trainer
            self.early_stopping_patience_counter = 0
        self.early_stopping_patience = args.early_stopping_patience  # not the checkpoint's, which may be another
        control.should_training_stop |= self._is_used_up()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if args.metric_for_best_model in metrics:
            self.check_metric_value(args, state, control, metrics[args.metric_for_best_model])
            control.should_training_stop |= self._is_used_up()

    def _is_used_up(self) -> bool:
        return 0 < self.early_stopping_patience <= self.early_stopping_patience_counter


class MovedRun(TrainerCallback):
    """A resumed run looks for its best checkpoint in its own folder, which may have been moved or copied.

    transformers looks where it was written, and goes on without one where that is gone.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if state.best_global_step is not None and verify_checkpoint(checkpoint) is None:
            state.best_model_checkpoint = str(checkpoint)


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds of training, evaluations included, and the end of it at `--max_minutes`.

    Checkpoints keep the seconds, so that a resumed run counts the whole.
    """

    def __init__(self):
        self.seconds_before, self.start = 0.0, None

    @property
    def seconds(self) -> float:
        """Seconds so far, those before the checkpoint included."""
        return self.seconds_before + (0.0 if self.start is None else time.monotonic() - self.start)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()
        if state.global_step == 0:  # not resumed, perhaps the second `train()` of one Trainer
            self.seconds_before = 0.0
        control.should_training_stop |= state.global_step > 0 and self._is_over(args)  # a resumed run has had its time

    def on_step_end(self, args, state, control, **kwargs):
        """Stop at `--max_minutes`, with an evaluation and a checkpoint; strategy `epoch` makes them by itself."""
        if self._is_over(args):
            control.should_training_stop = True
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.STEPS
            control.should_save |= args.save_strategy == SaveStrategy.STEPS

    def _is_over(self, args) -> bool:
        if args.max_minutes is None:
            return False
        if args.world_size > 1:  # clocks differ: all take the latest, and stop at the same step
            latest = torch.tensor(self.seconds, device=args.device)
            torch.distributed.all_reduce(latest, torch.distributed.ReduceOp.MAX)
            self.seconds_before += latest.item() - self.seconds
            return latest.item() >= 60 * args.max_minutes
        return self.seconds >= 60 * args.max_minutes

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds_before, self.start = self.seconds, None

    def state(self) -> dict:
        """What a checkpoint keeps, in transformers' form."""
        return {"args": {}, "attributes": {"seconds_before": self.seconds}}


class AfterFirstStep(TrainerCallback):
    """Call a function once, in all processes: after the first step, or at the end of a training without one."""

    def __init__(self, function: Callable[[], None]):
        self.function, self.is_done = function, False

    def on_step_end(self, args, state, control, **kwargs):
        if not self.is_done:
            self.is_done = True
            self.function()

    on_train_end = on_step_end


class EpochCallback(TrainerCallback):
    """Set the epoch of the training data."""

    def __init__(self, dataset: TokenDataset | TokenStream):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.choose_epoch(int(state.epoch + 1e-6))  # a resumed epoch has begun already


def _evaluation_line(state, logs: dict) -> str | None:
    """One line for an evaluation of the validation split; None for other logs."""
    epoch = f"epoch {state.epoch or 0:5.2f}"
    if "eval_validation_accuracy" in logs:
        nats, accuracy = logs["eval_validation_nats_per_image_unconditional"], logs["eval_validation_accuracy"]
        return f"{epoch}  validation {accuracy:7.2%} right, {nats:7.2f} nats/image, class unknown"
    if "eval_validation_nats_per_image" in logs:
        train = next(e["eval_train_nats_per_image"] for e in state.log_history[::-1] if "eval_train_loss" in e)
        return f"{epoch}  train {train:7.2f}  validation {logs['eval_validation_nats_per_image']:7.2f} nats/image"
    return None


class OneLineProgress(ProgressCallback):
    """The Trainer's progress bars, with one line for each evaluation instead of the whole log."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None and self.training_bar.n <= 1:
            self.training_bar.unpause()  # the first step loads the kernels: it says nothing of the time that is left

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and (line := _evaluation_line(state, logs or {})) is not None:
            self.training_bar.write(line, file=sys.stderr)


class EvaluationLines(TrainerCallback):
    """One line for each evaluation, where there are no progress bars."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and (line := _evaluation_line(state, logs or {})) is not None:
            logger.info(line)


class SampleSheetCallback(TrainerCallback):
    """Make a sheet of samples after each evaluation: a PNG in output_dir/samples, and an image in the reports.

    The random state is restored afterwards, so that sampling does not change the training. With FSDP there is no
    sheet: the first process, which samples, has only a part of the weights.

    Args:
        make_sheet: A function from the model to an `ImageGrid`.
    """

    def __init__(self, make_sheet):
        self.make_sheet = make_sheet
        self.trainer: Trainer | None = None  # set by `make_trainer`: the way to the reports' writers

    def on_evaluate(self, args, state, control, metrics, model=None, **kwargs):
        if not state.is_world_process_zero or args.metric_for_best_model not in metrics:
            return
        if self.trainer is not None and self.trainer.is_fsdp_enabled:
            return
        with torch.random.fork_rng():
            sheet = self.make_sheet(model)
        path = Path(args.output_dir) / "samples" / f"step-{state.global_step:06d}.png"
        with report_last_checkpoint(path, args.output_dir):
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path)
        self._report(args, sheet.image(), state.global_step)

    def _report(self, args, sheet, step: int):
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image("samples", np.asarray(sheet), step, dataformats="HW")
        if "wandb" in args.report_to:
            import wandb

            wandb.log({"samples": wandb.Image(sheet)}, commit=False)
        if "trackio" in args.report_to:
            import trackio

            trackio.log({"samples": trackio.Image(sheet)})
