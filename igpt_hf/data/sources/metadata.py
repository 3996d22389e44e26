"""Folders of images with a table: metadata.csv or metadata.jsonl, as the imagefolder of `datasets` has them.

The column `file_name` is the path of an image from the table on, and another column is its class. Below train/ and
test/, in the table or of the tables themselves, images belong to that split.
"""

import json
from pathlib import Path

import pandas as pd

from ...errors import DataError
from .columns import ONE_CLASS, warn_of_one_class
from .folder import from_paths
from .parts import ReadOptions, SourceImages, rows_of_parts, split_name


METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"


def open_metadata(folder: Path, tables: list[Path], options: ReadOptions) -> SourceImages:
    """Images that tables in or below a folder name; they stay on disk until they are used.

    Raises:
        DataError: A table is damaged or lacks a column, or an image is missing or outside the folder.
    """
    labels: dict[Path, str] = {}
    for table in tables:
        labels |= _read_table(folder, table, options)
    part_of = {path: path.relative_to(folder).parts[0] for path in labels}
    if not all(split_name(part) for part in part_of.values()):
        part_of = dict.fromkeys(labels, "")
    paths = sorted(labels, key=lambda path: (part_of[path], path))
    sizes = {part: list(part_of.values()).count(part) for part in sorted(set(part_of.values()))}
    return SourceImages(from_paths(paths, [labels[path] for path in paths]), rows_of_parts(sizes, str(folder)))


def _read_table(folder: Path, table: Path, options: ReadOptions) -> dict[Path, str]:
    """Class of each image of one table, by path."""
    rows = _rows(table)
    columns = list(rows.columns)
    if FILE_COLUMN not in columns:
        raise DataError(f"{table} has no column {FILE_COLUMN!r}, but {columns}. Rename the column of the paths.")
    label_column = options.label_column
    if label_column in columns:
        values = rows[label_column].tolist()
    elif label_column == ReadOptions.label_column:
        values = [ONE_CLASS] * len(rows)
        warn_of_one_class(str(table), [name for name in columns if name != FILE_COLUMN])
    else:
        raise DataError(f"{table} has no column {label_column!r}. Set label_column to one of {columns}.")
    labels = {}
    for row, (name, value) in enumerate(zip(rows[FILE_COLUMN], values, strict=True)):
        where = f"row {row} of {table}"
        path = Path(table.parent, *str(name).replace("\\", "/").split("/"))
        if ".." in path.parts or not path.is_relative_to(folder):
            raise DataError(f"{where} names {name!r}, which is outside {folder}. Name files in the folder.")
        if not path.is_file():
            raise DataError(f"{where} names {name!r}, and there is no such file. Remove the row or add the file.")
        if value is None or str(value) in ("", "nan"):
            raise DataError(f"{where} has no label in column {label_column!r}. Add it or remove the row.")
        labels[path] = str(value)
    return labels


def _rows(table: Path) -> pd.DataFrame:
    """All rows, with the values as they are written."""
    try:
        if table.suffix == ".csv":
            return pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{table} is damaged: {error}. It must be a table of UTF-8 text with a header.") from error
