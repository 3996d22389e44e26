"""Files of arrays: idx, .npy, .npz, .mat, .amat and CSV; the labels' file is given or found by its name."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import DataError
from .idx import is_idx, read_idx
from .layouts import PYTHON, Habits
from .matlab import read_mat
from .named_arrays import describe, open_named_arrays
from .numpy_files import read_npy, read_npz
from .parts import SPLITS, ReadOptions, SourceImages
from .tables import read_amat, read_csv, read_labels


TABLES = (".csv", ".txt")
ARRAY_SUFFIXES = (".npy", ".npz", ".mat", ".amat", ".csv")
# What is written in the name of a file of images, and in that of its labels.
NAMES_OF_LABELS = (
    ("images-idx3", "labels-idx1"),
    ("images", "labels"),
    ("image", "label"),
    ("imgs", "labels"),
    ("x", "y"),
    ("data", "labels"),
    ("data", "label"),
    ("data", "targets"),
    ("data", "target"),
)


def is_array_file(path: Path) -> bool:
    return path.suffix.lower() in ARRAY_SUFFIXES or is_idx(path)


def open_array_files(source: str, paths: list[Path], options: ReadOptions) -> SourceImages:
    """One file of arrays, or the images' and the labels' file."""
    if len(paths) > 2:
        raise DataError(f"{source}: give one file of images and, after a comma, one of labels.")
    arrays, habits = _read_pair(paths[0], paths[1] if len(paths) == 2 else None, options)
    return open_named_arrays(arrays, source, _without_columns(options, arrays, paths), habits)


def open_array_folder(folder: Path, files: list[Path], options: ReadOptions) -> SourceImages:
    """A folder of such files, as MNIST's: one for each split, named after it, each with its labels.

    Raises:
        DataError: There are several files of images, and not all are named after a split.
    """
    unpacked = {path for path in files if path.suffix.lower() != ".gz"}
    files = [path for path in files if path in unpacked or path.with_suffix("") not in unpacked]
    images = [path for path in files if describe(path.name)[1] != "label"]
    if len(images) == 1:
        return open_array_files(str(images[0]), images, options)
    of_split = {describe(path.name)[0]: path for path in images}
    if len(of_split) != len(images) or None in of_split:
        names = ", ".join(path.name for path in images[:5]) or "only labels"
        raise DataError(f"{folder} has {names}: which are the images? Give one file as the source, not the folder.")
    arrays: dict[str, Any] = {}
    for split in filter(of_split.get, SPLITS):
        found, habits = _read_pair(of_split[split], None, options)
        arrays |= {f"{split}_{name}": array for name, array in found.items()}
    return open_named_arrays(arrays, str(folder), _without_columns(options, arrays, images), habits)


def _without_columns(options: ReadOptions, arrays: dict[str, Any], paths: list[Path]) -> ReadOptions:
    """The options without names that were those of columns of tables, which are arrays by now."""
    if any(path.suffix.lower() in TABLES for path in paths) and options.label_column not in arrays:
        return replace(options, label_column=ReadOptions.label_column)
    return options


def _read_pair(path: Path, labels: Path | None, options: ReadOptions) -> tuple[dict[str, Any], Habits]:
    """Arrays of a file by name, with those of its file of labels, and the habits of what wrote it."""
    arrays, habits = _read(path, options)
    if len(arrays) == 1:  # such as {"x_train": ...} of a .npy file
        arrays = {"image": next(iter(arrays.values()))}
        labels = labels or _find_labels(path)
    if labels is not None:
        arrays["label"] = _read_labels(labels, options)
    return arrays, habits


def _read(path: Path, options: ReadOptions) -> tuple[dict[str, Any], Habits]:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    suffix = path.suffix.lower()
    if suffix == ".mat":
        return read_mat(path)
    if suffix == ".npy":
        return read_npy(path), PYTHON
    if suffix == ".npz":
        return read_npz(path), PYTHON
    if suffix == ".csv":
        return read_csv(path, options), PYTHON
    if suffix == ".amat":
        return read_amat(path), PYTHON
    return {path.name: read_idx(path)}, PYTHON


def _read_labels(path: Path, options: ReadOptions) -> Any:
    if path.suffix.lower() in TABLES:
        return read_labels(path, options)
    found, _ = _read(path, options)
    if len(found) != 1:
        raise DataError(f"{path} has {len(found)} arrays, {', '.join(found)}: save the labels alone.")
    return next(iter(found.values()))


def _find_labels(path: Path) -> Path | None:
    """The file beside a file of images that has the same name, but for the word that says what is in it."""
    name = path.name.lower()
    beside = {other.name.lower(): other for other in path.parent.iterdir() if other.is_file()}
    for word, other in NAMES_OF_LABELS:
        wanted = re.sub(rf"(?<![a-z]){word}(?![a-z])", other, name)
        for candidate in (wanted, wanted.removesuffix(".gz"), f"{wanted}.gz"):
            if wanted != name and candidate in beside:
                return beside[candidate]
    return None
