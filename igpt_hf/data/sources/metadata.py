"""Folders of images with a table: metadata.csv or metadata.jsonl, as the imagefolder of `datasets` has them.

The column `file_name`, or the one that `image_column` names, is the path of an image from the table on, and another
column is its class. Below train/ and test/, in the table or of the tables themselves, images belong to that split.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ...errors import DataError
from .columns import ONE_CLASS, warn_of_one_class
from .folder import from_paths
from .parts import ReadOptions, SourceImages, rows_of_parts, split_name
from .tables import read_header


METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"


def open_metadata(folder: Path, tables: list[Path], options: ReadOptions) -> SourceImages:
    """Images that tables in or below a folder name; they stay on disk until they are used.

    Raises:
        DataError: A table is damaged or lacks a column, or an image is missing or outside the folder.
    """
    labels: dict[Path, str] = {}
    for table in tables:
        for path, label in _read_table(folder, table, options):
            if labels.setdefault(path, label) != label:
                raise DataError(
                    f"{table} says that {path} is of class {label!r}, and an earlier row says {labels[path]!r}. Keep "
                    "one of the two."
                )
    part_of = {path: path.relative_to(folder).parts[0] for path in labels}
    if not all(split_name(part) for part in part_of.values()):
        part_of = dict.fromkeys(labels, "")
    paths = sorted(labels, key=lambda path: (part_of[path], path))
    sizes = {part: list(part_of.values()).count(part) for part in sorted(set(part_of.values()))}
    return SourceImages(from_paths(paths, [labels[path] for path in paths]), rows_of_parts(sizes, str(folder)))


def file_column(columns: list[str], options: ReadOptions) -> str | None:
    """The column of the paths: the one that was named, or `file_name`; None: there is none."""
    named = [] if options.image_column == ReadOptions.image_column else [options.image_column]
    return next((name for name in (*named, FILE_COLUMN) if name in columns), None)


def _read_table(folder: Path, table: Path, options: ReadOptions) -> Iterator[tuple[Path, str]]:
    """Path and class of each image of one table."""
    rows = _rows(table)
    columns = list(rows.columns)
    if (files := file_column(columns, options)) is None:
        raise DataError(f"{table} has no column {FILE_COLUMN!r}. Set image_column to that of the paths: {columns}.")
    label_column = options.label_column
    if label_column in columns:
        values = rows[label_column].tolist()
    elif label_column == ReadOptions.label_column:
        values = [ONE_CLASS] * len(rows)
        warn_of_one_class(str(table), [name for name in columns if name != files])
    else:
        raise DataError(f"{table} has no column {label_column!r}. Set label_column to one of {columns}.")
    for row, (name, value) in enumerate(zip(rows[files], values, strict=True)):
        where = f"row {row} of {table}"
        path = Path(table.parent, *str(name).replace("\\", "/").split("/"))
        if ".." in path.parts or not path.is_relative_to(folder):
            raise DataError(f"{where} names {name!r}, which is outside {folder}. Name files in the folder.")
        if not path.is_file():
            raise DataError(f"{where} names {name!r}, and there is no such file. Remove the row or add the file.")
        if value is None or str(value) in ("", "nan"):
            raise DataError(f"{where} has no label in column {label_column!r}. Add it or remove the row.")
        yield path, str(value)


def _rows(table: Path) -> pd.DataFrame:
    """All rows, with the values as they are written."""
    try:
        if table.suffix == ".csv":
            options = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
            return pd.read_csv(table, sep=read_header(table)[1], **options)
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{table} is damaged: {error}. It must be a table of UTF-8 text with a header.") from error
