"""Which reader opens a source: by what is there, its type, its suffix and what is in it."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from ...errors import DataError
from .archives import ARCHIVE_SUFFIXES, unpack
from .array_files import is_array_file, open_array_files, open_array_folder
from .folder import IMAGE_SUFFIXES, open_class_folders, visible_files
from .hoda import open_cdb
from .hub import open_hub
from .memory import open_in_memory
from .metadata import METADATA_NAMES, file_column, open_metadata
from .parquet import num_rows, open_parquet
from .parts import ReadOptions, SourceImages
from .saved import is_saved, open_saved
from .tables import read_header


logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")
WHAT_IS_TAKEN = (
    "A source is 'synthetic', a folder, a zip or tar archive, parquet, .cdb, idx, .npy, .npz, .mat, .amat or CSV "
    "files, or a Hub dataset id such as 'user/name' or 'user/name:configuration'."
)


def open_source(source: Any, options: ReadOptions) -> SourceImages:
    """Open anything that `load_splits` takes, but for `synthetic`.

    Raises:
        DataError: There is no such file, or its content is bad.
        IGPTError: The Hub has no such dataset.
    """
    if not isinstance(source, (str, os.PathLike)):
        return open_in_memory(source, options)
    source = str(source)
    paths = [source] if os.path.exists(source) else source.split(",")
    paths = [Path(path.strip()).expanduser() for path in paths if path.strip()]
    if not paths:
        raise DataError(f"{source!r} does not exist. {WHAT_IS_TAKEN}")
    if all(path.suffix.lower() == ".cdb" for path in paths):
        return open_cdb(paths)
    if len(paths) > 1 and any(path.exists() for path in paths):
        if any(path.is_dir() or path.suffix.lower() == ".parquet" for path in paths):
            raise DataError(
                f"{source}: commas join .cdb files, or a file of images and one of labels. Put others into one folder."
            )
        return open_array_files(source, paths, options)
    if paths[0].is_dir():
        return open_folder(paths[0], options)
    if paths[0].is_file():
        return open_file(paths[0], options)
    if looks_like_path(source):
        raise DataError(f"{source!r} does not exist. {WHAT_IS_TAKEN}")
    return open_hub(source, options)


def looks_like_path(source: str) -> bool:
    """Whether `source` can only be a path: 'a/b' may be a Hub id, and so may 'a/b-v1.5', but not 'a/b.png'."""
    return HUB_ID.fullmatch(source) is None or re.search(r"\.[A-Za-z]\w*$", source.partition(":")[0]) is not None


def open_file(path: Path, options: ReadOptions) -> SourceImages:
    """A file that holds many images."""
    name = path.name.lower()
    if name.endswith(ARCHIVE_SUFFIXES):
        return open_folder(unpack(path), options)
    if name.endswith(".csv") and file_column(read_header(path)[0] or [], options) is not None:
        return open_metadata(path.parent, [path], options)
    with open(path, "rb") as file:
        is_parquet = name.endswith(".parquet") or file.read(4) == b"PAR1"
    if is_parquet:
        return open_parquet(str(path), [path], options)
    if path.suffix.lower() not in IMAGE_SUFFIXES and is_array_file(path):
        return open_array_files(str(path), [path], options)
    raise DataError(f"{path} is of a kind that is not read. {WHAT_IS_TAKEN}")


def open_folder(folder: Path, options: ReadOptions) -> SourceImages:
    """A folder, by what is in it: a saved data set, tables of images, images, or files that hold many."""
    if is_saved(folder):
        return open_saved(folder, options)
    files = visible_files(folder)
    tables = [path for path in files if path.name in METADATA_NAMES]
    if tables:
        return open_metadata(folder, tables, options, files)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    parquet = [path for path in files if path.suffix.lower() == ".parquet"]
    if parquet and (not images or sum(map(num_rows, parquet)) > len(images)):
        if images:  # previews beside the data, as in clones of data sets of the Hub
            logger.warning("%s: %d images beside the parquet files are left out", folder, len(images))
        return open_parquet(str(folder), parquet, options)
    if images:
        return open_class_folders(folder, files, options)
    arrays = [path for path in files if is_array_file(path)]
    if arrays:
        return open_array_folder(folder, arrays, options)
    saved = [path for path in sorted(folder.iterdir()) if path.is_dir() and is_saved(path)]
    if len(saved) == 1:  # an archive of a saved data set
        return open_saved(saved[0], options)
    raise DataError(
        f"{folder} holds no images: expected one folder of images per class, images alone, or files of many images."
    )
