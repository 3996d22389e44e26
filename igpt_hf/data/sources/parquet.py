"""Parquet files; those that are named after splits, as the Hub does it, keep them."""

from glob import escape
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetsError

from ...errors import DataError
from .columns import standardize_columns
from .parts import ReadOptions, SourceImages, rows_of_parts, split_of_file


PARQUET_ERRORS = (OSError, ValueError, RuntimeError, NotImplementedError)  # what pyarrow raises on damaged files


def open_parquet(source: str, paths: list[Path], options: ReadOptions) -> SourceImages:
    """One file or several; `train-*.parquet` and `test-*.parquet` are splits if all are named after one."""
    sizes = {path: num_rows(path) for path in paths}
    paths = [path for path in paths if sizes[path] > 0]  # from_parquet fails on a file without rows
    if not paths:
        raise DataError(f"{source} holds no images: it has no rows.")
    split_of = file_splits(paths)
    paths.sort(key=lambda path: split_of[path] or "")
    try:
        dataset = Dataset.from_parquet([escape(str(path)) for path in paths])
    except (DatasetsError, *PARQUET_ERRORS) as error:
        raise DataError(f"{source} cannot be loaded: {error.__cause__ or error}. Are all files alike?") from error
    parts = dict.fromkeys([split_of[path] or "" for path in paths], 0)
    for path in paths:
        parts[split_of[path] or ""] += sizes[path]
    return SourceImages(standardize_columns(dataset, source, options), rows_of_parts(parts, source))


def file_splits(paths: list[Path]) -> dict[Path, str | None]:
    """The split that each file is named after; none, unless all are named after one."""
    split_of = {path: split_of_file(path.stem) for path in paths}
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
