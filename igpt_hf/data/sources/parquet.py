"""Parquet files; those that are named after splits, as the Hub does it, keep them."""

from glob import escape
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetsError

from ...errors import DataError
from .columns import standardize_columns
from .parts import ReadOptions, SourceImages, rows_of_parts, split_name, split_of_file


PARQUET_ERRORS = (OSError, ValueError, RuntimeError, NotImplementedError)  # what pyarrow raises on damaged files


def open_parquet(source: str, paths: list[Path], options: ReadOptions) -> SourceImages:
    """One file or several; `train-*.parquet`, or all in a folder `train`, are a split if all are named after one."""
    sizes = {path: num_rows(path) for path in paths}
    paths = [path for path in paths if sizes[path] > 0]  # from_parquet fails on a file without rows
    if not paths:
        raise DataError(f"{source} holds no images: it has no rows.")
    split_of = file_splits(paths, Path(source))
    paths.sort(key=lambda path: split_of[path] or "")
    try:
        dataset = Dataset.from_parquet([escape(str(path)) for path in paths])
    except (DatasetsError, *PARQUET_ERRORS) as error:
        raise DataError(f"{source} cannot be loaded: {error.__cause__ or error}. Are all files alike?") from error
    parts = dict.fromkeys([split_of[path] or "" for path in paths], 0)
    for path in paths:
        parts[split_of[path] or ""] += sizes[path]
    return SourceImages(standardize_columns(dataset, source, options), rows_of_parts(parts, source))


def file_splits(paths: list[Path], source: Path) -> dict[Path, str | None]:
    """The split that each file, or a folder of it in the source, is named after; none, unless all are so."""

    def split_of_path(path: Path) -> str | None:
        folders = path.relative_to(source).parts[:-1] if path.is_relative_to(source) else ()
        return split_of_file(path.stem) or next(filter(None, map(split_name, reversed(folders))), None)

    split_of = {path: split_of_path(path) for path in paths}
    return split_of if None not in split_of.values() else dict.fromkeys(paths)


def num_rows(path: Path) -> int:
    """Rows of a parquet file, from its end.

    Raises:
        DataError: It is damaged.
    """
    try:
        return pq.read_metadata(path).num_rows
    except PARQUET_ERRORS as error:
        raise DataError(f"{path} is damaged or not a parquet file: {error}. Write it again.") from error
