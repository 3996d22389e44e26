"""Checkpoints that can be trusted: whole or passed over, never half loaded, never deleted before the next is whole.

The last file of a checkpoint is its manifest, the size and SHA-256 of all others. A run that breaks off while it
writes leaves a checkpoint without one; a disk that loses bytes leaves one that does not agree with it.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, rotate_checkpoints

from ..distributed import on_first_process
from ..errors import DataError


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RESULTS = "all_results.json"  # written last: where it is, the run is complete
LOCK = "_train.lock"  # the library pushes no file whose name begins with an underscore
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # what disks without file locks answer
INCOMPLETE, LEFT = "incomplete-", "left-"  # the Trainer, which deletes old checkpoints, takes such names for none
RUN_FILES = (
    *("model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json", "training_args.bin"),
    *("README.md", RESULTS, "loss_curve.png", "samples.png", "completions.png", "trainer_state.json"),
    "accuracy_curve.png",
)


# --- one checkpoint -------------------------------------------------------------------------------------------------


def seal(checkpoint: Path):
    """Flush a checkpoint's files to the disk, then write the manifest that says it is complete."""
    manifest, folders = {}, [checkpoint.parent, checkpoint]
    for path in sorted(checkpoint.rglob("*")):
        if path.is_dir():
            folders.append(path)
            continue
        path.chmod(path.stat().st_mode | stat.S_IWUSR)  # code that was copied from a read-only installation
        with open(path, "r+b") as file:  # Windows flushes only what is open for writing
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        manifest[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    unfinished = checkpoint / f"{MANIFEST}.tmp"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, checkpoint / MANIFEST)
    for folder in reversed(folders):
        _flush_folder(folder)


def _flush_folder(folder: Path):
    """Flush the names in a folder: on POSIX a new or renamed file is on the disk only when its folder is, too."""
    if os.name == "nt":  # where a folder cannot be opened, and NTFS keeps a journal of the names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks do not know it
            raise
    finally:
        os.close(descriptor)


def find_problem(checkpoint: Path) -> str | None:
    """Say why a checkpoint cannot be resumed from; None if it is whole."""
    if not (checkpoint / MANIFEST).is_file():
        return f"it has no {MANIFEST}: the run broke off before it was complete"
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest.items()}
    except (ValueError, AttributeError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, digest) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} is damaged: its SHA-256 is not that of the {MANIFEST}"
    return None


# --- the checkpoints of a run ---------------------------------------------------------------------------------------


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """All checkpoint folders of a run, oldest first."""
    found = [
        path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()
    ]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Path of the newest complete checkpoint of a run, or None."""
    return next((str(path) for path in reversed(checkpoints(output_dir)) if find_problem(path) is None), None)


def set_aside(checkpoint: Path, prefix: str, reason: str):
    """Rename a checkpoint, with a message: what is in it stays, and nothing reads it."""
    aside, number = checkpoint.with_name(f"{prefix}{checkpoint.name}"), 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"{prefix}{checkpoint.name}-{number}")
    checkpoint.rename(aside)
    logger.warning("%s is passed over: %s. It is kept as %s; delete it if you like.", checkpoint, reason, aside.name)


@contextlib.contextmanager
def naming_the_last_checkpoint(what: str | os.PathLike, output_dir: str | os.PathLike):
    """Where something inside cannot be written (a full disk, a read-only folder), say which checkpoint is still good.

    Raises:
        OSError: Instead of that error and of those of torch.save and safetensors.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not re.search("inline_container|iostream", str(error)):
            raise  # not one of torch.save's
        raise OSError(
            f"{what} could not be written: {error}. Last complete checkpoint: "
            f"{last_complete_checkpoint(output_dir) or 'none'}. Free space or make the folder writable, then go "
            "on with --resume_from_checkpoint true."
        ) from error


@contextlib.contextmanager
def whole_checkpoint(trainer: Trainer):
    """What the Trainer saves inside is sealed at the end, and only then are older checkpoints deleted.

    Raises:
        OSError: It could not be written; the message names the checkpoint that is still good.
    """
    args = trainer.args
    folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    limit, args.save_total_limit = args.save_total_limit, None  # the Trainer would delete before the seal
    try:
        with naming_the_last_checkpoint(folder, args.output_dir):
            if args.should_save:
                (folder / MANIFEST).unlink(missing_ok=True)  # of an earlier run that came as far
            yield
            trainer.accelerator.wait_for_everyone()
            if args.should_save:
                seal(folder)
                rotate_checkpoints(args.output_dir, limit, trainer.state.best_model_checkpoint, use_mtime=True)
    finally:
        args.save_total_limit = limit


# --- output folder --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_run_in(output_dir: str | os.PathLike):
    """No other run trains into the folder inside; the processes of one launch are one run.

    The first process holds a file lock, which the system takes back when that process ends, however it ends. What was
    made for the lock and is empty at the end is removed.

    Raises:
        DataError: In all processes: another run holds the lock, or the folder cannot be written to.
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
        raise DataError(
            f"--output_dir {folder} is in use: another run is training into it. Wait for its end, stop it, or choose "
            "another --output_dir."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise DataError(f"--output_dir {folder} cannot be written to: {error}") from error
        logger.warning(
            "warning: the disk of %s has no file locks (%s): see to it that no other run trains into that folder.",
            folder,
            error.strerror,
        )
    return made


def _give_back(lock: FileLock, made: list[Path]):
    with contextlib.suppress(OSError):  # Windows removes no open file; there filelock does it itself
        Path(lock.lock_file).unlink()  # while it is held: nobody else's
    lock.release()
    for path in made:
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def _check_writable(folder: Path):
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--output_dir {folder} is a file. Choose a folder.")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise DataError(f"--output_dir {folder} cannot be written to: {parent} is read-only.")


def prepare_output_dir(args) -> str | None:
    """Refuse to overwrite another run; returns the checkpoint to resume from, if that was asked for.

    Args:
        args: `IGPTTrainingArguments`.

    Raises:
        DataError: output_dir cannot be written to, or is in use and neither `--resume_from_checkpoint` nor
            `--overwrite_output_dir` was given, or there is no complete checkpoint to resume from.
    """
    folder = Path(args.output_dir)
    _check_writable(folder)
    resume = args.resume_from_checkpoint
    resumes = bool(resume) and resume.lower() != "false"
    if resumes and (resume.lower() == "true" or _is_of_run(resume, folder)):
        return _resume_from(folder, resume)
    if resumes:  # another run's checkpoint: what is in this folder is not a part of it
        _check_whole(resume, find_problem(Path(resume)))
    in_use = _run_files(folder)
    if in_use and not args.overwrite_output_dir:
        raise DataError(
            f"{folder} holds a run already ({in_use[0].name}). Go on: --resume_from_checkpoint true. Start anew "
            "and delete it: --overwrite_output_dir true. Or choose another --output_dir."
        )
    return resume if resumes else None


def resumes_from_the_end(args) -> bool:
    """Whether `--resume_from_checkpoint` goes on from where the run in output_dir is, not from an earlier checkpoint
    or another run's."""
    resume, found = args.resume_from_checkpoint or "false", checkpoints(args.output_dir)
    return resume.lower() == "true" or (bool(found) and found[-1].resolve() == Path(resume).resolve())


def delete_overwritten(args, checkpoint: str | None):
    """With `--overwrite_output_dir`, delete the run that was there, unless it is the one that is resumed.

    Called once the data and the model are at hand, since a mistake in their flags should not cost the old run.

    Args:
        args: `IGPTTrainingArguments`.
        checkpoint: From `prepare_output_dir`.
    """
    folder = Path(args.output_dir)
    if args.overwrite_output_dir and not (checkpoint is not None and _is_of_run(checkpoint, folder)):
        aside = [path for name in (INCOMPLETE, LEFT) for path in folder.glob(f"{name}{PREFIX_CHECKPOINT_DIR}-*")]
        for path in [*_run_files(folder), *aside, folder / "samples", folder / "runs"]:  # the last: TensorBoard's
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _run_files(folder: Path) -> list[Path]:
    return [folder / name for name in RUN_FILES if (folder / name).exists()] + checkpoints(folder)


def _is_of_run(checkpoint: str, folder: Path) -> bool:
    return Path(checkpoint).resolve().parent == folder.resolve()


def _check_whole(checkpoint: str, problem: str | None):
    if problem is not None:
        raise DataError(f"--resume_from_checkpoint {checkpoint} is no complete checkpoint: {problem}.")


def _resume_from(folder: Path, resume: str) -> str:
    """The checkpoint that "true" or a path stands for; the incomplete ones, and those after it, are set aside."""
    problems = {path: find_problem(path) for path in checkpoints(folder)}  # which reads every byte, once
    whole = [path for path, problem in problems.items() if problem is None]
    if resume.lower() == "true":
        if not whole:
            raise DataError(f"{folder} holds no complete checkpoint to resume from. Start anew without that flag.")
        chosen, resume = whole[-1], str(whole[-1])
    else:
        chosen = next((path for path in problems if path.resolve() == Path(resume).resolve()), None)
        _check_whole(resume, find_problem(Path(resume)) if chosen is None else problems[chosen])
        if chosen is None:
            raise DataError(
                f"--resume_from_checkpoint {resume} was set aside: give it back its name, checkpoint-STEP."
            )
    for path, problem in problems.items():
        if problem is not None:
            set_aside(path, INCOMPLETE, problem)
    for path in whole[whole.index(chosen) + 1 :]:  # of a run that this one leaves
        set_aside(path, LEFT, f"the run goes on from {chosen.name}, which is older")
    return resume


# --- preemption -----------------------------------------------------------------------------------------------------


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
                "--resume_from_checkpoint true."
            )

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


__all__ = [
    *("Preempted", "SaveOnSigterm", "checkpoints", "delete_overwritten", "find_problem", "last_complete_checkpoint"),
    *("only_run_in", "prepare_output_dir", "resumes_from_the_end"),
    *("naming_the_last_checkpoint", "seal", "set_aside", "whole_checkpoint"),
]
