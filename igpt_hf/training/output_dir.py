"""The folder of a run: its lock, and what may be overwritten."""

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path

from accelerate import PartialState
from filelock import FileLock, Timeout
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed import on_first_process
from ..errors import IGPTError
from ..plots import VECTOR_FORMATS
from .checkpoints import INCOMPLETE, LEFT, list_checkpoints, quarantine, verify_checkpoint
from .file_names import MODEL_FILES, OF_A_RUN
from .run_settings import check_same_run


logger = logging.getLogger(__name__)


LOCK = "_train.lock"  # transformers pushes no file whose name begins with an underscore
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # what disks without file locks answer
FIGURES = ("loss_curve", "samples", "completions", "accuracy_curve", "data")
IMAGES = tuple(f"{name}.{form}" for name in FIGURES for form in ("png", *VECTOR_FORMATS))
RUN_FILES = (*MODEL_FILES, *OF_A_RUN, *IMAGES)
# Sheets of samples and TensorBoard's events, where the Trainer writes them; other runs may lie beside them.
LOGS = ("samples/step-*.png", "runs/*/events.out.tfevents*", "runs/*/[0-9]*.[0-9]*/events.out.tfevents*")


@contextlib.contextmanager
def only_run_in(output_dir: str | os.PathLike):
    """No other run trains into the folder inside; the processes of one launch are one run.

    The first process holds a file lock, which the system takes back when that process ends, however it ends. What was
    made for the lock and is empty at the end is removed.

    Raises:
        IGPTError: In all processes: another run holds the lock, or the folder cannot be written to.
    """
    folder = Path(output_dir)
    lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)  # a soft lock would outlive its owner
    made = on_first_process(lambda: _take(lock, folder))
    try:
        yield
    finally:
        if PartialState().is_main_process:
            _give_back(lock, made)


def _take(lock: FileLock, folder: Path) -> list[Path]:
    """Lock the folder; returns the folders that had to be made, the innermost first."""
    _check_writable(folder)
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise IGPTError(
            f"--output_dir {folder} is in use: another run is training into it. Wait for its end, stop it, or choose "
            "another --output_dir."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise IGPTError(f"--output_dir {folder} cannot be written to: {error}") from error
        logger.warning(
            "warning: the disk of %s has no file locks (%s): see to it that no other run trains into that folder.",
            folder,
            error.strerror,
        )
    return made


def _give_back(lock: FileLock, made: list[Path]):
    with contextlib.suppress(OSError):  # Windows removes no open file; there filelock does it itself
        Path(lock.lock_file).unlink()  # while it is held, so no other run's lock is deleted
    lock.release()
    for path in made:
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def _check_writable(folder: Path):
    if folder.exists() and not folder.is_dir():
        raise IGPTError(f"--output_dir {folder} is a file. Choose a folder.")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise IGPTError(f"--output_dir {folder} cannot be written to: {parent} is read-only.")


def prepare_output_dir(args, settings: dict | None = None) -> str | None:
    """Refuse to overwrite another run; returns the checkpoint to resume from, if that was asked for.

    Args:
        args: `IGPTTrainingArguments`.
        settings: Of this run (`run_settings`), which a resumed one must share; None: they are not compared.

    Raises:
        IGPTError: output_dir cannot be written to, or is in use and neither `--resume_from_checkpoint` nor
            `--overwrite_output_dir` was given, or there is no complete checkpoint to resume from, or one of a run
            with other flags.
    """
    folder = Path(args.output_dir)
    _check_writable(folder)
    resume = args.resume_from_checkpoint
    resumes = bool(resume) and resume.lower() != "false"
    if resumes and (resume.lower() == "true" or _is_of_run(resume, folder)):
        return _resume_from(folder, resume, settings)
    if resumes:  # another run's checkpoint: what is in this folder is not a part of it
        _check_whole(resume, verify_checkpoint(Path(resume)))
        check_same_run(resume, settings)
    in_use = _run_files(folder)
    is_run = any(path.name in OF_A_RUN for path in in_use) or bool(list_checkpoints(folder))
    if not is_run and (others := [path for path in in_use if path.name not in IMAGES]):
        raise IGPTError(
            f"{folder} holds {others[0].name} but no run, and a run would write a file of that name. Choose another "
            "--output_dir."
        )
    if in_use and not args.overwrite_output_dir:
        raise IGPTError(
            f"{folder} holds a run already ({in_use[0].name}). Go on: the same command with --resume_from_checkpoint "
            "true. Start anew and delete it: --overwrite_output_dir true. Or choose another --output_dir."
        )
    return resume if resumes else None


def resumes_from_the_end(args) -> bool:
    """Whether `--resume_from_checkpoint` goes on from where the run in output_dir is, not from an earlier checkpoint
    or another run's."""
    resume, found = args.resume_from_checkpoint or "false", list_checkpoints(args.output_dir)
    return resume.lower() == "true" or (bool(found) and found[-1].resolve() == Path(resume).resolve())


def overwritten_files(args, checkpoint: str | None) -> list[Path]:
    """The files and checkpoints of the run that `--overwrite_output_dir` starts anew; none of one that is resumed.

    Args:
        args: `IGPTTrainingArguments`.
        checkpoint: From `prepare_output_dir`.
    """
    folder = Path(args.output_dir)
    if not args.overwrite_output_dir or (checkpoint is not None and _is_of_run(checkpoint, folder)):
        return []
    aside = [path for name in (INCOMPLETE, LEFT) for path in folder.glob(f"{name}{PREFIX_CHECKPOINT_DIR}-*")]
    logs = [path for pattern in LOGS for path in folder.glob(pattern)]
    return [*_run_files(folder), *aside, *logs]


def delete_overwritten(args, files: list[Path]):
    """Delete what `overwritten_files` found before the training began, and the folders that this empties.

    Called after the first step, since a mistake in a flag, which only a step may show, should not cost the old run.
    """
    folder = Path(args.output_dir)
    for path in files:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in sorted({path for file in files for path in file.parents if folder in path.parents}, reverse=True):
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def _run_files(folder: Path) -> list[Path]:
    return [folder / name for name in RUN_FILES if (folder / name).exists()] + list_checkpoints(folder)


def _is_of_run(checkpoint: str, folder: Path) -> bool:
    return Path(checkpoint).resolve().parent == folder.resolve()


def _check_whole(checkpoint: str, problem: str | None):
    if not Path(checkpoint).is_dir():
        raise IGPTError(f"--resume_from_checkpoint {checkpoint}: there is no such folder.")
    if found := list_checkpoints(checkpoint):
        raise IGPTError(
            f"--resume_from_checkpoint {checkpoint} is the folder of a run: name {found[-1]}, for example."
        )
    if problem is not None:
        raise IGPTError(f"--resume_from_checkpoint {checkpoint} is not a complete checkpoint: {problem}.")
    _check_has_optimizer(checkpoint)


def _check_has_optimizer(checkpoint: str):
    """Refuse a checkpoint of the model alone: the Trainer would begin optimizer, schedule and averages anew."""
    names = ("optimizer*", "global_step*")  # of torch and FSDP, and of DeepSpeed
    if not any(path for name in names for path in Path(checkpoint).glob(name)):
        raise IGPTError(
            f"{checkpoint} holds a model without its optimizer (--save_only_model true), and cannot be resumed. Begin "
            f"another run with its weights: --model_name_or_path {checkpoint}, another --output_dir."
        )


def _resume_from(folder: Path, resume: str, settings: dict | None) -> str:
    """The checkpoint that "true" or a path stands for; the incomplete ones, and those after it, are set aside."""
    problems = {path: verify_checkpoint(path) for path in list_checkpoints(folder)}  # which reads every byte, once
    whole = [path for path, problem in problems.items() if problem is None]
    if resume.lower() == "true":
        if not whole:
            raise IGPTError(f"{folder} holds no complete checkpoint to resume from. Start anew without that flag.")
        chosen, resume = whole[-1], str(whole[-1])
        _check_has_optimizer(resume)
    else:
        chosen = next((path for path in problems if path.resolve() == Path(resume).resolve()), None)
        _check_whole(resume, verify_checkpoint(Path(resume)) if chosen is None else problems[chosen])
        if chosen is None:
            raise IGPTError(
                f"--resume_from_checkpoint {resume} was set aside: give it back its name, checkpoint-STEP."
            )
    check_same_run(resume, settings)
    for path, problem in problems.items():
        if problem is not None:
            quarantine(path, INCOMPLETE, problem)
    for path in whole[whole.index(chosen) + 1 :]:  # of a run that this one leaves
        quarantine(path, LEFT, f"the run goes on from {chosen.name}, which is older")
    return resume
