"""What each reader is told and what it returns: images with classes, and the splits that came with them."""

import re
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from ...errors import DataError


SPLITS = ("train", "validation", "test")
# What people call the splits: as in `datasets` (data_files.SPLIT_KEYWORDS), and t10k of MNIST's files.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "t10k"), "test"),
}


@dataclass(frozen=True)
class ReadOptions:
    """What the user says of a source."""

    image_column: str = "image"  # or the name of an array in a file of several
    label_column: str = "label"
    labels_from: str | None = None  # nested folders: "parent" or "top"; None: not said


@dataclass(frozen=True)
class SourceImages:
    """All images of a source, and the rows of each split that came with it (none: all rows are alike)."""

    dataset: Dataset  # columns `image` (Image) and `label` (ClassLabel)
    splits: dict[str, np.ndarray] = field(default_factory=dict)


def split_name(word: str | None) -> str | None:
    """The split that a folder or a part is named after: 'Val' -> 'validation'; None if after none."""
    return SPLIT_WORDS.get((word or "").lower())


def split_of_file(stem: str) -> str | None:
    """The split that a file is named after as the Hub does it, in its first word: 'test-00000-of-00001' -> 'test'."""
    return split_name(re.split(r"[^A-Za-z0-9]", stem)[0])


def rows_of_parts(sizes: dict[str, int], source: str) -> dict[str, np.ndarray]:
    """Rows of each split, where parts of these sizes follow each other: {'train': 3, 'val': 2} -> (0..2), (3, 4).

    A part that stands alone is all of the data; so are parts that are named after no split.

    Raises:
        DataError: There are several splits, and none of them is for training.
    """
    splits: dict[str, np.ndarray] = {}
    start = 0
    for name, size in sizes.items():
        key = split_name(name)
        if key is not None and size:
            rows = np.arange(start, start + size)
            splits[key] = np.concatenate([splits[key], rows]) if key in splits else rows
        start += size
    if len(splits) < 2:
        return {}
    if "train" not in splits:
        raise DataError(f"{source} has the splits {', '.join(splits)}, but no train split. Add one, or give one part.")
    return {name: splits[name] for name in SPLITS if name in splits}
