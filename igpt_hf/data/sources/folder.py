"""A folder of one folder of images per class."""

import logging
import re
from pathlib import Path

from datasets import Dataset

from ...errors import DataError
from .arrays import from_encoded
from .columns import natural_order
from .parquet import open_parquet


logger = logging.getLogger(__name__)


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}


def open_folder(folder: Path, image_column: str, label_column: str) -> Dataset:
    """A folder of class folders, or else of parquet files."""
    subfolders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    subfolders.sort(key=lambda path: natural_order(path.name))
    class_files = {path.name: visible_files(path, IMAGE_SUFFIXES) for path in subfolders}
    if any(class_files.values()):
        return _open_class_folders(folder, class_files)
    parquet_files = visible_files(folder, {".parquet"})
    if parquet_files:
        return open_parquet(str(folder), parquet_files, image_column, label_column)
    if visible_files(folder, IMAGE_SUFFIXES):
        raise DataError(f"{folder} has images but no class folders: move the images into one folder per class.")
    raise DataError(f"{folder} holds no images: expected one folder of images per class, or parquet files.")


def _open_class_folders(folder: Path, class_files: dict[str, list[Path]]) -> Dataset:
    """Only paths are kept: the images stay on disk until they are used."""
    if {name.lower() for name in class_files} <= SPLIT_NAMES:
        raise DataError(
            f"The folders in {folder} are named after splits ({', '.join(class_files)}), not classes. Give one of "
            "them as the source, or merge their class folders: igpt_hf makes the splits itself."
        )
    ignored = sorted(set(visible_files(folder)).difference(*class_files.values()))
    if ignored:
        logger.warning("Ignored %d files that are no images in a class folder, such as %s", len(ignored), ignored[0])
    encoded = [{"bytes": None, "path": str(path.absolute())} for files in class_files.values() for path in files]
    labels = [label for label, files in enumerate(class_files.values()) for _ in files]
    try:
        return from_encoded(encoded, labels, list(class_files))
    except UnicodeEncodeError as error:
        raise DataError(f"The name of {error.object!r} is not UTF-8: rename it.") from error


def visible_files(folder: Path, suffixes: set[str] | None = None) -> list[Path]:
    """All files below a folder, sorted, without hidden files and what is in hidden folders."""
    paths = (path for path in sorted(folder.rglob("*")) if suffixes is None or path.suffix.lower() in suffixes)
    is_hidden = re.compile(r"(^|[/\\])\.").search
    return [path for path in paths if not is_hidden(str(path.relative_to(folder))) and path.is_file()]
