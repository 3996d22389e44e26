"""Data sets with an image and a label column, whatever their names and types -> `image` and `label`."""

import logging
import re

from datasets import ClassLabel, Dataset, Image, List, Value

from ...errors import DataError


logger = logging.getLogger(__name__)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key that counts: '9' < '10', 'a2' < 'a10'."""
    parts = re.split(r"(\d+)", name)  # text, digits, text, ...
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def standardize_columns(dataset: Dataset, source: str, image_column: str, label_column: str) -> Dataset:
    """Keep the two columns, renamed to `image` and `label` and cast to Image and ClassLabel."""
    for option, column in {"image_column": image_column, "label_column": label_column}.items():
        if column not in dataset.column_names:
            raise DataError(f"{source} has no column {column!r}. Set {option} to one of {dataset.column_names}.")
    labels, names = class_labels_of(dataset, source, label_column)
    feature = dataset.features[image_column]
    if isinstance(feature, List) and isinstance(feature.feature, Value):
        raise DataError(
            f"Column {image_column!r} of {source} holds flat lists of numbers, not images: make them lists of rows."
        )
    images = dataset.select_columns(image_column).rename_columns({image_column: "image"})
    try:
        images = images.cast_column("image", Image())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"Column {image_column!r} of {source} holds no images: {error}. Set image_column.") from error
    return images.add_column("label", labels, feature=ClassLabel(names=names))


def class_labels_of(dataset: Dataset, source: str, column: str) -> tuple[list[int], list[str]]:
    """Class index of each row, and the class names; text and whole numbers become names in natural order."""
    feature, values = dataset.features[column], dataset[column][:]
    is_class_label = isinstance(feature, ClassLabel)
    missing = [
        row
        for row, value in enumerate(values)
        if value is None or (is_class_label and not 0 <= value < feature.num_classes)
    ]
    if missing:
        raise DataError(
            f"{len(missing)} rows of {source} have no valid label in column {column!r}, the first is row {missing[0]} "
            f"({values[missing[0]]}). Remove these rows."
        )
    if is_class_label:
        used = sorted(set(values))  # a data set that somebody has filtered may have names without rows
        if len(used) < feature.num_classes:
            unused = ", ".join(name for label, name in enumerate(feature.names) if label not in used)
            logger.warning("%s has no images of %s: these classes are left out", source, unused)
        return [used.index(value) for value in values], [feature.names[label] for label in used]
    if not isinstance(feature, Value) or re.fullmatch(r"(large_)?string|u?int\d+|bool", feature.dtype) is None:
        raise DataError(f"Column {column!r} of {source} is no label: {feature}, not text or whole numbers.")
    names = sorted({str(value) for value in values}, key=natural_order)
    index_of = {name: index for index, name in enumerate(names)}
    return [index_of[str(value)] for value in values], names
