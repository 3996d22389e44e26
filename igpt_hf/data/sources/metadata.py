"""Folders of images with a table: metadata.csv or metadata.jsonl, as the imagefolder of `datasets` has them.

The column `file_name`, or the one that `image_column` names, is the path of an image from the table on, and another
column is its class. Below train/ and test/, in the table or of the tables themselves, images belong to that split.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from ...errors import DataError
from .columns import ONE_CLASS, warn_of_one_class
from .folder import IMAGE_SUFFIXES, below_one_folder, from_paths
from .parts import ReadOptions, SourceImages, rows_of_parts, split_name
from .tables import read_header


logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"


def open_metadata(folder: Path, tables: list[Path], options: ReadOptions, files: Iterable[Path] = ()) -> SourceImages:
    """Images that tables in or below a folder name; they stay on disk until they are used.

    Of `files`, all that are in the folder, images that no table names are left out, with a warning.

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
    unnamed = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path not in labels]
    if unnamed:
        logger.warning("%s: %d images are in no row of a table, such as %s", folder, len(unnamed), unnamed[0])
    part_of = {path: parts[0] for path, parts in below_one_folder(folder, labels)[1].items()}
    if not all(split_name(part) for part in part_of.values()):
        part_of = dict.fromkeys(labels, "")
    paths = sorted(labels, key=lambda path: (part_of[path], path))
    sizes = {part: list(part_of.values()).count(part) for part in sorted(set(part_of.values()))}
    return SourceImages(from_paths(paths, [labels[path] for path in paths]), rows_of_parts(sizes, str(folder)))


def file_column(columns: list[str], options: ReadOptions) -> str | None:
    """The column of the paths: the one that was named, or `file_name`, or `image`; None: there is none."""
    is_named = options.image_column != ReadOptions.image_column
    names = (options.image_column, FILE_COLUMN) if is_named else (FILE_COLUMN, options.image_column)
    return next((name for name in names if name in columns), None)


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
        if table.suffix.lower() == ".csv":
            options = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
            rows = pd.read_csv(table, sep=read_header(table)[1], skipinitialspace=True, **options)
            return rows.rename(columns=str.strip)
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{table} is damaged: {error}. It must be a table of UTF-8 text with a header.") from error
