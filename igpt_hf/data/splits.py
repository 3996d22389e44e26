"""Image sources of every kind -> DatasetDict(train, validation, test) of images and class labels.

The images stay unchanged (any size, any mode): the image processor prepares them.
"""

import logging
import os
import re
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from ..errors import DataError, IGPTError
from .decoding import readable_rows
from .sources.arrays import from_arrays
from .sources.folder import open_folder
from .sources.hoda import open_cdb
from .sources.hub import open_hub
from .sources.parquet import open_parquet
from .synthetic import CLASS_NAMES, synthetic_digits


logger = logging.getLogger(__name__)

VALIDATION_FRACTION, TEST_FRACTION = 0.10, 0.05  # the rest, 85%, is for training
MIN_IMAGES_PER_CLASS = 3  # one for each of the three splits
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_splits(
    source: str | os.PathLike = "synthetic",
    *,
    seed: int = 42,
    image_column: str = "image",
    label_column: str = "label",
    max_images: int | None = None,
    skip_bad_images: bool = False,
    num_synthetic: int = 20_000,
) -> DatasetDict:
    """Load a source and split it 85/10/5, class by class, shuffled with the seed.

    ```python
    splits = load_splits("path/to/RemainingSamples.cdb", seed=42)
    splits["train"][0]  # {"image": <PIL image>, "label": 7}
    splits["train"].features["label"].names  # ["0", ..., "9"]
    ```

    Args:
        source: in this order: the word `synthetic` (synthetic digits; `./synthetic` for a folder of that
            name); `.cdb` files, comma separated; a folder of one folder per class; a parquet file or a folder of
            them; else a Hub dataset id `user/name`, of which all splits are taken together.
        seed: of the synthetic digits, of the subset and of the split.
        image_column: parquet and Hub only.
        label_column: parquet and Hub only; text and whole numbers become classes too.
        max_images: keep a random subset of at most this many images, with the classes in the same proportions.
        skip_bad_images: leave out (and count in the log) the images that cannot be decoded, instead of raising.
        num_synthetic: how many digits `synthetic` has.

    Returns:
        `train`, `validation` and `test` with the columns `image` (PIL) and `label` (ClassLabel).

    Raises:
        DataError: There is no such file, an image or a label is bad, or a class has fewer than 3 images.
        IGPTError: `max_images` is too small, or the Hub has no such dataset.
    """
    source = os.path.expanduser(source)
    if source == "synthetic" and max_images is not None:
        num_synthetic = min(num_synthetic, max_images)
    dataset = _open_source(source, seed, image_column, label_column, num_synthetic)
    if len(dataset) == 0:
        raise DataError(f"{source} holds no images.")
    labels = np.array(dataset["label"][:], dtype=np.int64)  # (n,)
    names = dataset.features["label"].names

    rows = np.arange(len(labels)) if max_images is None else _subset(labels, names, max_images, seed)
    rows = readable_rows(dataset, rows, source, skip_bad_images)
    return DatasetDict({split: dataset.select(part) for split, part in _split(labels, rows, names, seed).items()})


# Sources: each function returns a Dataset with the columns `image` (Image) and `label` (ClassLabel).


def _open_source(source: str, seed: int, image_column: str, label_column: str, num_synthetic: int) -> Dataset:
    if source == "synthetic":
        images, labels = synthetic_digits(num_synthetic, seed)
        return from_arrays(images, labels, list(CLASS_NAMES))
    paths = [source] if os.path.exists(source) else source.split(",")
    if all(path.strip().lower().endswith(".cdb") for path in paths):
        return open_cdb([os.path.expanduser(path.strip()) for path in paths])
    if os.path.isdir(source):
        return open_folder(Path(source), image_column, label_column)
    if os.path.isfile(source):
        return open_parquet(source, [Path(source)], image_column, label_column)
    if looks_like_path(source):
        raise DataError(
            f"{source!r} does not exist. A source is 'synthetic', .cdb files (comma separated), a folder of class "
            "folders, parquet, or a Hub dataset id such as 'user/name'."
        )
    return open_hub(source, image_column, label_column)


def looks_like_path(source: str) -> bool:
    """Whether `source` can only be a path: 'a/b' may be a Hub id, and so may 'a/b-v1.5', but not 'a/b.png'."""
    return HUB_ID.fullmatch(source) is None or re.search(r"\.[A-Za-z]\w*$", source) is not None


# Rows: which images to keep, and the split that each goes to.


def _subset(labels: np.ndarray, names: list[str], max_images: int, seed: int) -> np.ndarray:
    """Sorted rows of a random subset with the proportions of the classes; a larger one contains a smaller one."""
    if max_images < MIN_IMAGES_PER_CLASS * len(names):
        minimum = MIN_IMAGES_PER_CLASS * len(names)
        raise IGPTError(f"max_images={max_images} is too small: {len(names)} classes need at least {minimum} images.")
    rng = np.random.default_rng(seed)
    order = np.zeros(len(labels))  # where each image stands in its shuffled class: 0 is first, 1 would be last
    for label in range(len(names)):
        members = rng.permutation(np.flatnonzero(labels == label))
        order[members] = np.arange(len(members)) / len(members)
        order[members[:MIN_IMAGES_PER_CLASS]] = -1  # never left out
    return np.sort(np.argsort(order, kind="stable")[:max_images])


def _split(labels: np.ndarray, rows: np.ndarray, names: list[str], seed: int) -> dict[str, np.ndarray]:
    """Split each class's rows 85/10/5, at least one to each split; returns shuffled rows by split."""
    counts = np.bincount(labels[rows], minlength=len(names))
    small = [
        f"{name!r} has {count}" for name, count in zip(names, counts, strict=True) if count < MIN_IMAGES_PER_CLASS
    ]
    if small:
        raise DataError(
            f"Each class needs at least {MIN_IMAGES_PER_CLASS} images, one for each split, but class "
            f"{', '.join(small)}. Add images or remove the class."
        )
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for label, count in enumerate(counts):
        num_validation, num_test = max(1, round(VALIDATION_FRACTION * count)), max(1, round(TEST_FRACTION * count))
        members = rng.permutation(rows[labels[rows] == label])
        validation, test, train = np.split(members, [num_validation, num_validation + num_test])
        parts["train"].append(train)
        parts["validation"].append(validation)
        parts["test"].append(test)
    return {split: rng.permutation(np.concatenate(members)) for split, members in parts.items()}
