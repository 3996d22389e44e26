"""Parquet files."""

from glob import escape
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetsError

from ...errors import DataError
from .columns import standardize_columns


def open_parquet(source: str, paths: list[Path], image_column: str, label_column: str) -> Dataset:
    paths = [path for path in paths if num_rows(path) > 0]  # from_parquet fails on a file without rows
    if not paths:
        raise DataError(f"{source} holds no images: it has no rows.")
    try:
        dataset = Dataset.from_parquet([escape(str(path)) for path in paths])
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source} cannot be loaded: {error.__cause__ or error}. Are all files alike?") from error
    return standardize_columns(dataset, source, image_column, label_column)


def num_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no parquet file, and other files must be .cdb: {error}") from error
