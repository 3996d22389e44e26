"""Image sources of every kind -> DatasetDict(train, validation, test) of images and class labels.

The images stay unchanged (any size, any mode): the image processor prepares them.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
from datasets import DatasetDict

from ..errors import DataError, IGPTError
from .decoding import check_images
from .sources.arrays import from_arrays
from .sources.dispatch import open_source
from .sources.memory import NAME
from .sources.parts import SPLITS, ReadOptions, SourceImages
from .synthetic import CLASS_NAMES, synthetic_digits


# Of each class, cut from what is for training; the rest, 85%, stays there.
VALIDATION_FRACTION, TEST_FRACTION = 0.10, 0.05
FRACTIONS = {"validation": VALIDATION_FRACTION, "test": TEST_FRACTION}
SPLIT_RULES = ("auto", "given", "random")
LABEL_FOLDERS = (None, "parent", "top")


class Splits(DatasetDict):
    """`train`, `validation` and `test`; `given` names those that came with the data, the others were cut at random.

    `descriptions` has, for each of them, what `describe` of `load_splits` returned for its images; empty without it.
    """

    given: tuple[str, ...] = ()
    descriptions: dict[str, list]


def load_splits(
    source: Any = "synthetic",
    *,
    seed: int = 42,
    image_column: str = "image",
    label_column: str = "label",
    labels_from: str | None = None,
    splits: str = "auto",
    max_images: int | None = None,
    skip_bad_images: bool = False,
    num_synthetic: int = 20_000,
    describe: Callable[[PIL.Image.Image], Any] | None = None,
) -> Splits:
    """Load images of any kind, with the splits that came with them, or else split 85/10/5, class by class.

    ```python
    splits = load_splits("path/to/RemainingSamples.cdb", seed=42)  # or load_splits((images, labels))
    splits["train"][0]  # {"image": <PIL image>, "label": 7}
    ```

    Args:
        source: the word `synthetic` (synthetic digits; `./synthetic` for a folder of that name); a folder, an archive
            or a file of any kind in docs/data.md; a Hub dataset id, `user/name` or `user/name:configuration`; or a
            Dataset, a DatasetDict, a dict of arrays, or (images, labels). Images without classes have one, `image`.
        seed: of the synthetic digits, of the subset and of what is split at random.
        image_column, label_column: of a table, or the arrays of a file of several; text and numbers become classes.
        labels_from: folders in folders: the class is the `parent` folder of an image, or the `top` folder.
        splits: `auto` keeps given splits and cuts what is missing from train; `given` demands some; `random` none.
        max_images: keep a random subset of at most this many images, with the classes in the same proportions.
        skip_bad_images: leave out (and count in the log) images that cannot be decoded.
        num_synthetic: how many digits `synthetic` has.
        describe: is called with each image while it is checked, in threads, so that nobody has to decode it again.

    Returns:
        `train`, `validation` and `test` with the columns `image` (PIL) and `label` (ClassLabel), each shuffled.

    Raises:
        DataError: A file or a label is bad, a class has too few images, or a given split has one that train lacks.
        IGPTError: An argument is out of its range, or the Hub has no such dataset.
    """
    _check_choice("splits", splits, SPLIT_RULES)
    _check_choice("labels_from", labels_from, LABEL_FOLDERS)
    options = ReadOptions(image_column, label_column, labels_from)
    if max_images is not None and max_images < 1:
        raise DataError(f"max_images must be at least 1, got {max_images}.")
    images = open_images(source, options, min(num_synthetic, max_images or num_synthetic), seed)
    what = source_name(source)
    return _Splitter(images, what, splits, seed).split(max_images, skip_bad_images, describe)


def source_name(source: Any) -> str:
    """What errors call a source."""
    return os.path.expanduser(source) if isinstance(source, (str, os.PathLike)) else NAME


def open_images(source: Any, options: ReadOptions, num_synthetic: int = 20_000, seed: int = 42) -> SourceImages:
    """Open anything that `load_splits` takes, all images in the source's own order, not yet decoded.

    Raises:
        DataError: A file or a label is bad, or there are no images.
        IGPTError: The Hub has no such dataset.
    """
    if isinstance(source, str) and source == "synthetic":
        arrays, labels = synthetic_digits(num_synthetic, seed)
        images = SourceImages(from_arrays(arrays, labels, list(CLASS_NAMES)))
    else:
        is_path = isinstance(source, (str, os.PathLike))
        images = open_source(os.path.expanduser(source) if is_path else source, options)
    if len(images.dataset) == 0:
        raise DataError(f"{source_name(source)} holds no images.")
    return images


def _check_choice(name: str, value: str | None, choices: tuple[str | None, ...]):
    if value not in choices:
        raise IGPTError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}.")


def describe_splits(given: tuple[str, ...], seed: int, is_streamed: bool = False) -> str:
    """Say in a few words how images were split: for the start of a run and for its card."""
    how = "by chance" if is_streamed else "class by class"
    if not given:
        return f"split 85/10/5 {how} with seed {seed}"
    missing = [name for name in FRACTIONS if name not in given]
    cut = "".join(f"; {FRACTIONS[name]:.0%} of train cut off {how} for {name}, seed {seed}" for name in missing)
    return f"{' and '.join(given)} as given with the data{cut}"


class _Splitter:
    """Which rows of a source go to which split."""

    def __init__(self, images: SourceImages, source: str, rule: str, seed: int):
        given = {} if rule == "random" else images.splits
        if rule == "given" and not given:
            raise DataError(f"{source} comes without splits, and splits='given' needs some. Take auto or random.")
        self.dataset, self.source, self.seed = images.dataset, source, seed
        self.labels = np.array(self.dataset["label"][:], dtype=np.int64)  # (n,)
        self.names = self.dataset.features["label"].names
        self.given = tuple(name for name in given if name != "train")
        self.missing = [name for name in FRACTIONS if name not in given]
        # Index into SPLITS of what each row belongs to; train is what the missing splits are cut from.
        self.part_of = np.zeros(len(self.labels), dtype=np.int64)
        for name, rows in given.items():
            self.part_of[rows] = SPLITS.index(name)
        self._check_classes()

    def split(self, max_images: int | None, skip_bad_images: bool, describe: Callable | None) -> Splits:
        rows = np.arange(len(self.labels)) if max_images is None else self._subset(max_images)
        rows, descriptions = check_images(self.dataset, rows, self.source, skip_bad_images, describe)
        parts = self._rows_of_splits(rows)
        splits = Splits({name: self.dataset.select(part) for name, part in parts.items()})
        splits.given = self.given
        splits.descriptions = {}
        if describe is not None:
            by_row = dict(zip(rows.tolist(), descriptions, strict=True))
            splits.descriptions = {name: [by_row[row] for row in part.tolist()] for name, part in parts.items()}
        return splits

    def _check_classes(self):
        """Refuse a given split with classes that train lacks: the model could not know them."""
        known = set(self.labels[self.part_of == 0])
        for name in self.given:
            unknown = sorted(set(self.labels[self.part_of == SPLITS.index(name)]) - known)
            if unknown:
                raise DataError(
                    f"the {name} split of {self.source} has classes that its train split lacks: "
                    f"{', '.join(self.names[label] for label in unknown)}. Remove them, or set splits to random."
                )

    def _subset(self, max_images: int) -> np.ndarray:
        """Sorted rows of a random subset with the proportions of the classes; a larger one contains a smaller one."""
        groups = self.part_of * len(self.names) + self.labels
        kept = {group: 1 + (len(self.missing) if group < len(self.names) else 0) for group in np.unique(groups)}
        if max_images < sum(kept.values()):
            raise IGPTError(
                f"max_images={max_images} is too small: {len(self.names)} classes need at least {sum(kept.values())} "
                "images."
            )
        rng = np.random.default_rng(self.seed)
        order = np.zeros(len(groups))  # where each image stands in its shuffled class: 0 is first, 1 would be last
        for group, minimum in kept.items():
            members = rng.permutation(np.flatnonzero(groups == group))
            order[members] = np.arange(len(members)) / len(members)
            order[members[:minimum]] = -1  # never left out
        return np.sort(np.argsort(order, kind="stable")[:max_images])

    def _rows_of_splits(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Shuffled rows of each split: those given, and of each class in train the fractions for those missing."""
        to_cut = rows[self.part_of[rows] == 0]
        counts = np.bincount(self.labels[to_cut], minlength=len(self.names))
        self._check_counts(counts)
        rng = np.random.default_rng(self.seed)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
        for name in self.given:
            parts[name].append(rows[self.part_of[rows] == SPLITS.index(name)])
        for label, count in enumerate(counts):
            members = rng.permutation(to_cut[self.labels[to_cut] == label])
            sizes = [max(1, round(FRACTIONS[name] * count)) for name in self.missing]
            *cut, rest = np.split(members, np.cumsum(sizes, dtype=int))
            for name, part in zip([*self.missing, "train"], [*cut, rest], strict=True):
                parts[name].append(part)
        empty = [name for name in self.given if not len(parts[name][0])]
        if empty:
            raise DataError(f"the {empty[0]} split of {self.source} has no image that can be read. Fix its images.")
        return {name: rng.permutation(np.concatenate(members)) for name, members in parts.items()}

    def _check_counts(self, counts: np.ndarray):
        needed = 1 + len(self.missing)
        small = [f"{name!r} has {count}" for name, count in zip(self.names, counts, strict=True) if count < needed]
        if small:
            splits = ", ".join(["train", *self.missing])
            raise DataError(
                f"Each class needs at least {needed} images, one for each split ({splits}), but class "
                f"{', '.join(small)}. Add images or remove the class."
            )
