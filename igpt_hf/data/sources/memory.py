"""What is in memory: a Dataset, a DatasetDict, a dict of arrays, images with labels, or images alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image

from ...errors import DataError
from .columns import ONE_CLASS, class_indices, open_parts
from .named_arrays import label_texts, open_named_arrays
from .parts import ReadOptions, SourceImages


NAME = "the data in memory"


def open_in_memory(data: Any, options: ReadOptions) -> SourceImages:
    """Images with classes and, of a DatasetDict or a dict such as x_train, y_train, x_test, y_test, their splits.

    Raises:
        DataError: It is of another type, or labels and images do not fit together.
    """
    if isinstance(data, Dataset):
        return open_parts({"": data}, NAME, options)
    if isinstance(data, Mapping) and data and all(isinstance(part, Dataset) for part in data.values()):
        return open_parts(dict(data), NAME, options)
    if isinstance(data, Mapping):
        return open_named_arrays({str(name): _array(value) for name, value in data.items()}, NAME, options)
    is_pair = isinstance(data, tuple) and len(data) == 2
    images, labels = map(_array, data if is_pair else (data, None))
    if not isinstance(images, (np.ndarray, list, tuple)):
        raise DataError(
            f"load_splits takes a path, a Dataset, a DatasetDict, a dict of arrays or (images, labels), not "
            f"{type(data).__name__}."
        )
    if isinstance(images, (list, tuple)) and any(isinstance(image, PIL.Image.Image) for image in images):
        return _from_pil(images, labels)
    arrays = {"image": images} | ({} if labels is None else {"label": labels})
    return open_named_arrays(arrays, NAME, ReadOptions())


def _array(value: Any) -> Any:
    """A tensor -> an array; a list of tensors -> a list of arrays; all else stays as it is."""
    if hasattr(value, "__array__") and not isinstance(value, PIL.Image.Image):
        return np.asarray(value)
    if isinstance(value, (list, tuple)):
        return [_array(item) for item in value] if any(hasattr(item, "__array__") for item in value) else list(value)
    return value


def _from_pil(images: Sequence, labels: Any) -> SourceImages:
    """PIL images of any size and mode."""
    names = [ONE_CLASS] * len(images) if labels is None else label_texts(labels, NAME)
    if len(names) != len(images):
        raise DataError(f"{NAME} has {len(images)} images, but {len(names)} labels. Give one label for each image.")
    indices, class_names = class_indices(names)
    features = Features(image=Image(), label=ClassLabel(names=class_names))
    return SourceImages(Dataset.from_dict({"image": list(images), "label": indices}, features=features))
