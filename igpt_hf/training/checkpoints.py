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
import stat
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .file_names import MANIFEST


logger = logging.getLogger(__name__)

INCOMPLETE, LEFT = "incomplete-", "left-"  # the Trainer, which deletes old checkpoints, takes such names for none


# --- one checkpoint -------------------------------------------------------------------------------------------------


def write_manifest(checkpoint: Path):
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


def verify_checkpoint(checkpoint: Path) -> str | None:
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


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """All checkpoint folders of a run, oldest first."""
    found = [
        path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()
    ]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Path of the newest complete checkpoint of a run, or None."""
    return next(
        (str(path) for path in reversed(list_checkpoints(output_dir)) if verify_checkpoint(path) is None), None
    )


def quarantine(checkpoint: Path, prefix: str, reason: str):
    """Rename a checkpoint, with a message: what is in it stays, and nothing reads it."""
    aside, number = checkpoint.with_name(f"{prefix}{checkpoint.name}"), 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"{prefix}{checkpoint.name}-{number}")
    checkpoint.rename(aside)
    logger.warning("%s is passed over: %s. It is kept as %s; delete it if you like.", checkpoint, reason, aside.name)


@contextlib.contextmanager
def report_last_checkpoint(what: str | os.PathLike, output_dir: str | os.PathLike):
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
            "on with the same command and --resume_from_checkpoint true."
        ) from error


@contextlib.contextmanager
def sealed_checkpoint(trainer: Trainer):
    """What the Trainer saves inside, into the folder that this gives, is sealed at the end, and only then are older
    checkpoints deleted.

    Raises:
        OSError: It could not be written; the message names the checkpoint that is still good.
    """
    args = trainer.args
    folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    limit, args.save_total_limit = args.save_total_limit, None  # the Trainer would delete before the seal
    try:
        with report_last_checkpoint(folder, args.output_dir):
            if args.should_save:
                (folder / MANIFEST).unlink(missing_ok=True)  # of an earlier run that came as far
            yield folder
            trainer.accelerator.wait_for_everyone()
            if args.should_save:
                write_manifest(folder)
                times = [path.stat().st_mtime for path in list_checkpoints(args.output_dir)]
                differ = max(times) - min(times) >= 1  # of less, transformers warns, and goes by the steps
                rotate_checkpoints(args.output_dir, limit, trainer.state.best_model_checkpoint, use_mtime=differ)
    finally:
        args.save_total_limit = limit
