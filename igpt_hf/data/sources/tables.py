"""Tables of numbers with an image per row: CSV (as Kaggle has it) and .amat (as binarized MNIST is given)."""

import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import DataError
from .named_arrays import describe
from .parts import ReadOptions


logger = logging.getLogger(__name__)

INDEX_COLUMNS = ("", "id", "index")  # numbers of the rows, which are not pixels
ROWS = 10_000  # read at a time


def read_header(path: Path) -> tuple[list[str] | None, str]:
    """Column names of a CSV file, None if it begins with numbers, and what separates its columns.

    The numbers 0, 1, 2, ... are names: pandas gives them to columns without any.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline(2**24).rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a CSV file of UTF-8 text: {error}.") from error
    separator = max(",;\t", key=line.count)
    fields = [field.strip().strip('"').strip() for field in line.split(separator)]
    is_counted = len(fields) > 1 and fields == [str(index) for index in range(len(fields))]
    return (None if all(map(_is_number, fields)) and not is_counted else fields), separator


def read_csv(path: Path, options: ReadOptions) -> dict[str, np.ndarray]:
    """Pixels (n, h*w) and the classes of a CSV file: in the named column or, without names, the first or the last.

    Raises:
        DataError: The columns are not the pixels of a square image with or without a class, or a value is bad.
    """
    header, separator = read_header(path)
    is_counted = header is not None and header[-1] == str(len(header) - 1)
    if header is None or (is_counted and options.label_column not in header):
        count, skipped = _num_columns(path, separator), int(is_counted)
        label = _first_or_last(path, separator, count, skipped) if _is_square(count - 1) else None
        return _read(path, list(range(count)), label, separator, skipped)
    numbered = [index for index, name in enumerate(header) if name.lower() in INDEX_COLUMNS]
    is_whole = _is_square(len(header) - len(numbered)) and not _is_square(len(header))  # pixels alone, beside these
    label = None if is_whole and options.label_column not in header else _label_column(path, header, options)
    ignored = [index for index in numbered if index != label]
    ignored = [] if _is_square(len(header) - (label is not None)) else ignored
    return _read(path, [index for index in range(len(header)) if index not in ignored], label, separator, skiprows=1)


def _first_or_last(path: Path, separator: str, count: int, skipped: int) -> int:
    """Which column of a table without names is the class: the one that has a few whole numbers.

    Raises:
        DataError: Both could be. A corner that is always black has one number only, and is none.
    """
    rows = _first_rows(path, separator, skipped)
    corners = {index: rows[index] for index in (0, count - 1)}
    likely = [index for index, values in corners.items() if _may_be_classes(values)]
    if len(likely) == 2:  # pixels have no number above all others
        top = rows.iloc[:, 1:-1].to_numpy().max()
        likely = [index for index in likely if corners[index].max() > top]
        if len(likely) != 1:
            raise DataError(
                f"{path}: is the class in the first or the last column? Add a line of column names, and set "
                "label_column."
            )
    if likely == [count - 1]:
        logger.warning("%s: the last column is taken for the class", path)
    return likely[0] if likely else 0


def _may_be_classes(values: pd.Series) -> bool:
    return bool((values == values.round()).all()) and 1 < values.nunique() <= max(2, len(values) // 2)


def _first_rows(path: Path, separator: str, skipped: int) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep=separator, header=None, skiprows=skipped, nrows=ROWS // 10, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a table of numbers: {error}. Fix or remove the row.") from error


def read_amat(path: Path) -> dict[str, np.ndarray]:
    """Pixels (n, h*w) and, if there is one, the class in the last column of a file of numbers between spaces."""
    count = _num_columns(path, r"\s+")
    return _read(path, list(range(count)), count - 1 if _is_square(count - 1) else None, r"\s+")


def read_labels(path: Path, options: ReadOptions) -> np.ndarray:
    """The labels alone, of a file with one column or a column of the label's name; as text."""
    header, separator = read_header(path)
    column = 0
    if header is not None and len(header) > 1:
        column = _label_column(path, header, options)
    is_headed = header is not None and (len(header) > 1 or describe(header[0])[1] == "label")
    try:
        rows = pd.read_csv(path, sep=separator, header=None, skiprows=int(is_headed), dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as one label in each line: {error}.") from error
    if column is None or (rows.shape[1] > 1 and not is_headed):
        raise DataError(f"{path} has {rows.shape[1]} columns: which are the labels? Save them alone.")
    return rows[column].str.strip().to_numpy(dtype=str)


def _label_column(path: Path, header: list[str], options: ReadOptions) -> int | None:
    if options.label_column in header:
        return header.index(options.label_column)
    if options.label_column != ReadOptions.label_column:
        raise DataError(f"{path} has no column {options.label_column!r}. Set label_column to one of {header[:9]}.")
    usual = [index for index, name in enumerate(header) if describe(name)[1] == "label"]
    if len(usual) == 1:
        return usual[0]
    if _is_square(len(header) - 1) and not _is_square(len(header)):
        raise DataError(f"{path}: which column is the class? Set label_column to one of {header[:9]}.")
    return None


def _num_columns(path: Path, separator: str) -> int:
    try:
        return pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str).shape[1]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a table of numbers: {error}.") from error


def _read(path: Path, used: list[int], label: int | None, sep: str, skiprows: int = 0) -> dict[str, np.ndarray]:
    """The pixels, as float32, and the labels, as text."""
    pixels = [index for index in used if index != label]
    if not _is_square(len(pixels)):
        raise DataError(
            f"{path} has {len(pixels)} columns of pixels{'' if label is None else ' beside the label'}, which is not "
            "a square number: a row must be one square image. Set label_column to the column of the classes; of a "
            "table of image files, set image_column to the column of their paths."
        )
    types = {index: str if index == label else np.float32 for index in used}
    options = {"sep": sep, "skiprows": skiprows, "usecols": used, "dtype": types, "chunksize": ROWS}
    images: list[np.ndarray] = []
    labels: list[str] = []
    try:
        with pd.read_csv(path, header=None, keep_default_na=False, na_values=[], **options) as chunks:
            for chunk in chunks:
                images.append(chunk[pixels].to_numpy())
                labels += [] if label is None else chunk[label].fillna("").str.strip().tolist()
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path} holds no images: it has no rows.") from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} has a row that is not {len(used)} numbers: {error}. Fix or remove it.") from error
    arrays = {"image": np.concatenate(images)}
    return arrays if label is None else {**arrays, "label": np.array(labels)}


def _is_square(count: int) -> bool:
    return count >= 4 and math.isqrt(count) ** 2 == count


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
