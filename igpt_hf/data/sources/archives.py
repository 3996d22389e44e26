"""Zip and tar archives: unpacked once into the cache of `datasets`, and then read like a folder."""

import contextlib
import hashlib
import logging
import lzma
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from datasets import config as datasets_config
from tqdm.auto import tqdm

from ...errors import DataError
from ..cache_folders import new_folder


logger = logging.getLogger(__name__)

IS_UTF8 = 0x800  # the flag of a zip file's member whose name is UTF-8
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# What zipfile and tarfile raise on damaged, encrypted or unknown archives.
ARCHIVE_ERRORS: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
ARCHIVE_ERRORS += (OSError, EOFError, RuntimeError, ValueError, LookupError, NotImplementedError, OverflowError)
ARCHIVE_ERRORS += (MemoryError,)  # an .xz file says how much it needs, and may say 4 GB
CHUNK = 2**20  # bytes in memory at a time
# Images are compressed already. What unpacks to more than both is a bomb.
MAX_UNPACKED, MAX_RATIO = 100 * 2**20, 200


def unpack(archive: Path) -> Path:
    """Unpack an archive into the cache, unless it is there, and return the folder.

    Raises:
        DataError: It is damaged, unpacks to far more than an archive of images, or holds a path outside itself.
    """
    state = archive.stat()
    key = hashlib.sha256(f"{archive.absolute()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:24]
    final = Path(datasets_config.HF_DATASETS_CACHE) / "igpt_hf-archives" / key
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(final) as unfinished:
            _unpack_into(archive, unfinished / archive.name)
    return final / archive.name  # so that messages about its files name the archive


def check_unpacked(num_bytes: int, path: Path, packed: int | None = None):
    """Refuse a file that unpacks to far more than its size.

    Raises:
        DataError: It names the file and both sizes.
    """
    packed = path.stat().st_size if packed is None else packed
    if num_bytes > MAX_UNPACKED and num_bytes > MAX_RATIO * packed:
        raise DataError(
            f"{path} has {packed:,} bytes and unpacks to more than {num_bytes:,}: it is refused as a zip bomb. If it "
            "is not one, unpack it yourself and give the folder or the unpacked file."
        )


def _unpack_into(archive: Path, folder: Path):
    total = 0
    folder.mkdir()
    try:
        for name, file in tqdm(
            _members(archive), desc=f"Unpacking {archive.name}", unit=" files", delay=1, disable=None
        ):
            target = folder.joinpath(*_safe_parts(archive, name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as output:
                while chunk := file.read(CHUNK):
                    total += len(chunk)
                    check_unpacked(total, archive)
                    output.write(chunk)
    except DataError:
        raise
    except ARCHIVE_ERRORS as error:
        raise DataError(
            f"{archive} cannot be unpacked: {' '.join(str(error).split())}. Pack it again, or give the folder."
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file; links, folders and hidden files are left out."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir() and not _is_hidden(info.filename):
                    with packed.open(info) as file:
                        yield _name_in_zip(info), file
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isfile() and not _is_hidden(member.name):
                yield member.name, packed.extractfile(member)


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """The name of a file; macOS writes UTF-8 without saying so, and accents as letters of their own."""
    name = info.filename
    if not info.flag_bits & IS_UTF8:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return unicodedata.normalize("NFC", name)


def _is_hidden(name: str) -> bool:
    return any(
        part.startswith(".") and part not in (".", "..") for part in PurePosixPath(name.replace("\\", "/")).parts
    )


def _safe_parts(archive: Path, name: str) -> list[str]:
    """The parts of a member's path inside the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name or not path.parts:
        raise DataError(f"{archive} holds the path {name!r}, which leaves the archive. Pack it again without it.")
    return list(path.parts)
