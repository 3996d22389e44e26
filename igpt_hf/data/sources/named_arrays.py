"""Arrays with names -> images with classes: of .npz and .mat files, of files that belong together, of a dict."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from ...errors import DataError
from .arrays import from_arrays
from .columns import ONE_CLASS, class_indices
from .layouts import PYTHON, Habits, split_images, to_levels
from .parts import SPLIT_WORDS, ReadOptions, SourceImages, rows_of_parts, split_name


logger = logging.getLogger(__name__)

# What people call arrays of images, of labels, and of the names of the classes.
KIND_OF_WORD = {
    **dict.fromkeys(("image", "images", "img", "imgs", "x", "data", "pixels", "fea", "dat"), "image"),
    **dict.fromkeys(("label", "labels", "y", "target", "targets", "class", "gnd", "classlabels"), "label"),
    **dict.fromkeys(("classnames", "names"), "names"),
}
KINDS = ("names", "label", "image")  # by which word goes first: `image_labels` are labels


def describe(name: str) -> tuple[str | None, str | None]:
    """The split and the kind that a name speaks of: 'x_train', 'trainData' -> 'train', 'image'; None: of none."""
    words = re.findall(r"t10k|[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    split, kinds = None, set()
    for word in map(str.lower, words):
        prefix = next((key for key in SPLIT_WORDS if word.startswith(key) and word[len(key) :] in KIND_OF_WORD), "")
        suffix = next((key for key in SPLIT_WORDS if word.endswith(key) and word[: -len(key)] in KIND_OF_WORD), "")
        split = split_name(word) or split_name(prefix or suffix) or split
        rest = word.removeprefix(prefix).removesuffix(suffix)
        kinds |= {KIND_OF_WORD[rest]} if rest in KIND_OF_WORD else set()
    return split, next((kind for kind in KINDS if kind in kinds), None)


def open_named_arrays(
    arrays: Mapping[str, Any], source: str, options: ReadOptions, habits: Habits = PYTHON
) -> SourceImages:
    """Find images, labels and splits by the arrays' names, or else by their shapes.

    Raises:
        DataError: It is not clear which array the images are, or which the labels; or they do not fit together.
    """
    names = next((_texts(array) for name, array in arrays.items() if describe(name)[1] == "names"), None)
    parts = {}
    for split, (image_name, label_name) in _pairs(arrays, source, options).items():
        where = source if image_name == source else f"{image_name} of {source}"
        labels = None if label_name is None else label_texts(arrays[label_name], f"{label_name} of {source}")
        images = arrays[image_name]
        if labels is not None and _is_cell_array(images) and len(labels) == images.shape[0] != images.size:
            labels = [label for label in labels for _ in range(images.shape[1])]  # (classes, images of a class)
        images = split_images(images, where, None if labels is None else len(labels), habits)
        parts[split] = (where, images, labels)
    if len({labels is None for _, _, labels in parts.values()}) > 1:
        without = [split for split, (_, _, labels) in parts.items() if labels is None]
        raise DataError(f"{source} has no labels of {', '.join(without)}. Add them, or give the other split alone.")
    return _join(parts, source, names, habits)


def _join(parts: dict[str, tuple], source: str, names: list[str] | None, habits: Habits) -> SourceImages:
    """All splits -> one data set; the classes are those of all splits."""
    labels = [label for _, _, part_labels in parts.values() for label in part_labels or ()]
    count = sum(len(images) for _, images, _ in parts.values())
    names = None if names is not None and len(names) == count > len(set(labels)) else names  # those of the images
    base = None if names is None else _first_label(labels, names, habits)
    if not labels:
        labels = [ONE_CLASS] * count
    elif names is not None and base is not None:
        labels = [names[int(label) - base] for label in labels]
    elif habits.images_last and set(labels) == {str(label) for label in range(1, 11)}:
        logger.warning("%s has the labels 1 to 10: 10 is taken for the digit 0, as MATLAB's data has it", source)
        labels = [label.removesuffix("10") or "0" for label in labels]
    indices, class_names = class_indices(labels)
    levels = (image for where, images, _ in parts.values() for image in to_levels(images, where))
    are_masks = all(
        image.dtype.kind in "bui" and image.max() <= 1 for _, images, _ in parts.values() for image in images
    )
    dataset: Dataset = from_arrays(levels, indices, class_names, is_marked=are_masks)  # of masks, 1 is ink
    return SourceImages(dataset, rows_of_parts({name: len(part[1]) for name, part in parts.items()}, source))


def _first_label(labels: list[str], names: list[str], habits: Habits) -> int | None:
    """The label that the first name stands for, 0 in Python and 1 in MATLAB, if the labels allow it; None: neither."""
    for base in (1, 0) if habits.images_last else (0, 1):
        if set(labels) <= {str(base + index) for index in range(len(names))}:
            return base
    return None


def _pairs(arrays: Mapping[str, Any], source: str, options: ReadOptions) -> dict[str, tuple[str, str | None]]:
    """Names of the images and of the labels of each split; the split '' is all of the data."""
    shapes = {name: _shape(array) for name, array in arrays.items()}
    known: dict[str, dict[str, list[str]]] = {"image": {}, "label": {}}  # kind -> split -> names
    for name in arrays:
        split, kind = describe(name)
        if kind in known:
            known[kind].setdefault(split or "", []).append(name)
    for kind, column, default in (
        ("image", options.image_column, ReadOptions.image_column),
        ("label", options.label_column, ReadOptions.label_column),
    ):
        if column in arrays:
            known[kind] = {describe(column)[0] or "": [column]}
        elif column != default:
            raise DataError(f"{source} has no array {column!r}. Set {kind}_column to one of {_list(shapes)}.")
    if not known["image"]:
        known["image"] = {"": _image_like(shapes, known["label"])}
    if not known["label"]:
        known["label"] = {"": [name for name, shape in shapes.items() if _is_vector(shape)]}
    clear = all(len(names) == 1 for names in known["image"].values())
    if not clear:
        raise DataError(
            f"which array of {source} are the images? There are {_list(shapes)}. Set image_column to its name, and "
            "label_column to that of the labels."
        )
    pairs = {}
    for split, (image,) in known["image"].items():
        labels = [name for name in known["label"].get(split, []) if name != image]
        if len(labels) > 1:
            raise DataError(f"which array of {source} are the labels? Set label_column to one of {labels}.")
        pairs[split] = (image, labels[0] if labels else None)
    return pairs


def _shape(array: Any) -> tuple[int, ...]:
    """The shape of an array, or of a list, whose images may have different sizes."""
    if isinstance(array, (list, tuple)) and array and np.ndim(array[0]) > 0:
        return (len(array), *np.shape(array[0]))
    return np.shape(array)


def _image_like(shapes: dict[str, tuple[int, ...]], labels: dict[str, list[str]]) -> list[str]:
    """Arrays that could be images by their shapes."""
    taken = [name for names in labels.values() for name in names]
    return [name for name, shape in shapes.items() if len(shape) >= 2 and not _is_vector(shape) and name not in taken]


def _is_cell_array(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "O" and array.ndim == 2


def _is_vector(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 or (len(shape) == 2 and 1 in shape)


def _list(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:9]) or "no arrays"


def _texts(values: Any) -> list[str]:
    """Text or numbers of an array, also in a cell array, as text; whole numbers without a point."""
    values = values.ravel().tolist() if isinstance(values, np.ndarray) else list(values)
    values = [value.ravel()[0] if isinstance(value, np.ndarray) and value.size == 1 else value for value in values]
    values = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    texts = []
    for value in values:
        number = float(value) if isinstance(value, (int, float, np.number)) else None
        is_whole = number is not None and number.is_integer() and not isinstance(value, bool)
        texts.append(str(int(number)) if is_whole else "" if value is None else str(value).strip())
    return texts


def label_texts(array: Any, source: str) -> list[str]:
    """A label of each image, as text: (n,), (n, 1), (1, n), or one-hot (n, classes).

    Raises:
        DataError: They are fractions, or of another shape.
    """
    array = array if isinstance(array, np.ndarray) else np.asarray(array)
    if array.size == 0:
        raise DataError(f"{source} holds no labels. Give one for each image.")
    if not _is_vector(array.shape):
        is_one_hot = array.ndim == 2 and array.dtype.kind in "buif" and np.isin(array, (0, 1)).all()
        axis = next((axis for axis in (1, 0) if is_one_hot and (array.sum(axis) == 1).all()), None)
        if axis is None:
            raise DataError(f"{source} has the shape {array.shape}: labels must be one number or text per image.")
        array = array.argmax(axis)
    texts = _texts(array)
    is_bad = array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))
    if is_bad or array.dtype.kind not in "buifSUO" or "" in texts:
        raise DataError(f"{source} are not labels: {', '.join(texts[:5])}, ... They must be whole numbers or text.")
    if any("." in text for text in texts) and all(map(_is_whole, texts)):  # a table's, such as 3.0 or 3.00e+00
        texts = [str(int(float(text))) for text in texts]
    return texts


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False
