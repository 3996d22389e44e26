"""Data sets with an image and a label column, whatever their names and types -> `image` and `label`."""

import logging
import re

from datasets import ClassLabel, Dataset, Image, List, Value, concatenate_datasets

from ...errors import DataError
from .parts import ReadOptions, SourceImages, rows_of_parts, split_name


logger = logging.getLogger(__name__)

ONE_CLASS = "image"  # the class of images without classes


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key that counts: '9' < '10', 'a2' < 'a10'."""
    parts = re.split(r"(\d+)", name)  # text, digits, text, ...
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def open_parts(parts: dict[str, Dataset], source: str, options: ReadOptions) -> SourceImages:
    """Join data sets that are named after their splits; beside a train split, parts of other names are left out."""
    if "train" in map(split_name, parts):
        unknown = [name for name in parts if split_name(name) is None]
        if unknown:
            logger.warning("%s: left out %s, which is not train, validation or test", source, ", ".join(unknown))
        parts = {name: part for name, part in parts.items() if name not in unknown}
    try:
        dataset = concatenate_datasets(list(parts.values()))
    except (ValueError, TypeError) as error:
        raise DataError(f"The splits of {source} have different columns or classes: {error}.") from error
    sizes = {name: len(part) for name, part in parts.items()}
    return SourceImages(standardize_columns(dataset, source, options), rows_of_parts(sizes, source))


def standardize_columns(dataset: Dataset, source: str, options: ReadOptions) -> Dataset:
    """Keep the two columns, renamed to `image` and `label` and cast to Image and ClassLabel.

    A data set without the column `label`, where no other name was given, has one class, named `image`.
    """
    image_column, label_column = options.image_column, options.label_column
    is_labeled = label_column in dataset.column_names or label_column != ReadOptions.label_column
    needed = {"image_column": image_column} | ({"label_column": label_column} if is_labeled else {})
    for option, column in needed.items():
        if column not in dataset.column_names:
            raise DataError(f"{source} has no column {column!r}. Set {option} to one of {dataset.column_names}.")
    if is_labeled:
        labels, names = class_labels_of(dataset, source, label_column)
    else:
        labels, names = [0] * len(dataset), [ONE_CLASS]
        warn_of_one_class(source, [name for name in dataset.column_names if name != image_column])
    feature = dataset.features[image_column]
    if isinstance(feature, List) and isinstance(feature.feature, Value):
        raise DataError(
            f"Column {image_column!r} of {source} holds flat lists of numbers, not images: make them lists of rows."
        )
    images = dataset.select_columns(image_column).rename_columns({image_column: "image"})
    try:
        images = images.cast_column("image", Image())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"Column {image_column!r} of {source} does not hold images: {error}. Set image_column."
        ) from error
    return images.add_column("label", labels, feature=ClassLabel(names=names))


def warn_of_one_class(source: str, columns: list[str]):
    """Say that a table has columns, but not `label`: one of them may be the class."""
    if columns:
        logger.warning(
            "%s has no column 'label': all images are of one class. Or set label_column to one of %s", source, columns
        )


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
        index_of = {label: index for index, label in enumerate(used)}
        return [index_of[value] for value in values], [feature.names[label] for label in used]
    check_label_type(feature, source, column)
    return class_indices([str(value) for value in values])


def check_label_type(feature, source: str, column: str):
    """Raise DataError unless a column without class names holds text or whole numbers."""
    if not isinstance(feature, Value) or re.fullmatch(r"(large_)?string|u?int\d+|bool", feature.dtype) is None:
        raise DataError(f"Column {column!r} of {source} is not a label: {feature}, not text or whole numbers.")


def class_indices(labels: list[str]) -> tuple[list[int], list[str]]:
    """Index of each label's class, and the class names in natural order."""
    names = sorted(set(labels), key=natural_order)
    index_of = {name: index for index, name in enumerate(names)}
    return [index_of[label] for label in labels], names
