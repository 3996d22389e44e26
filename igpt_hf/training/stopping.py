"""Why and when a run ends, and whether a run that is resumed has ended already."""

from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from .arguments import IGPTTrainingArguments
from .callbacks import PatientEarlyStopping, Stopwatch
from .checkpoints import list_checkpoints
from .file_names import RESULTS
from .output_dir import resumes_from_the_end


def end_reached(args: IGPTTrainingArguments, state: TrainerState) -> str | None:
    """Which of the ends that were asked for has come: max_steps, epochs, early_stopping or max_minutes; None if none.

    Args:
        args: What is asked for, perhaps more than when `state` was saved.
        state: As `IGPTTrainer.save_state` leaves it.
    """
    if args.max_steps > 0 and state.global_step >= args.max_steps:
        return "max_steps"
    if args.max_steps <= 0 and state.epoch + 1e-6 >= args.num_train_epochs:
        return "epochs"
    if 0 < args.early_stopping_patience <= _evaluations_without_gain(state):
        return "early_stopping"
    if args.max_minutes is not None and _seconds(state) >= 60 * args.max_minutes:
        return "max_minutes"
    return None


def _evaluations_without_gain(state: TrainerState) -> int:
    saved: Any = state.stateful_callbacks  # by name, once they are saved; its type says a list
    return saved[PatientEarlyStopping.__name__]["attributes"]["early_stopping_patience_counter"]


def _seconds(state: TrainerState) -> float:
    saved: Any = state.stateful_callbacks
    return saved[Stopwatch.__name__]["attributes"]["seconds_before"]


def interrupted_message(trainer) -> str:
    """Say how far a run came that Ctrl-C stopped, and how to go on."""
    args = trainer.args
    of_old_run = args.overwrite_output_dir and trainer.state.global_step == 0
    checkpoints = [] if of_old_run else list_checkpoints(args.output_dir)
    how = (
        "go on with the same command and --resume_from_checkpoint true"
        if checkpoints
        else "there is no checkpoint yet"
    )
    return f"stopped at epoch {trainer.state.epoch or 0:.2f}; {how}."


def finished_message(args: IGPTTrainingArguments) -> str | None:
    """Say that the run that is to be resumed has nothing left to do; None if it has, or none is to be resumed.

    A run is finished when its results are written and it has come to an end that `args` ask for.
    """
    folder = Path(args.output_dir)
    files = [folder / RESULTS, folder / "trainer_state.json"]
    if not (resumes_from_the_end(args) and all(path.is_file() for path in files)):
        return None
    state = TrainerState.load_from_json(str(files[1]))
    end = end_reached(args, state)
    if end is None:
        return None
    had, flag = {
        "max_steps": (f"{state.global_step} steps", "max_steps"),
        "epochs": (f"{state.epoch:.4g} epochs", "num_train_epochs"),
        "early_stopping": (
            f"{_evaluations_without_gain(state)} evaluations without a gain",
            "early_stopping_patience",
        ),
        "max_minutes": (f"{_seconds(state) / 60:.4g} minutes", "max_minutes"),
    }[end]
    return (
        f"{folder} holds a finished run ({had}; --{flag} {getattr(args, flag)}), which is left as it is. To train on, "
        f"give a larger --{flag}."
    )
