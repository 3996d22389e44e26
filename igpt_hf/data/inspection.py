"""One look at a data set before training: what it holds, how it becomes binary, and what the model will see of it."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import PIL.Image
from datasets import Dataset

from ..errors import DataError
from ..model.image_processing_igpt import IGPTImageProcessor
from ..model.image_reading import GrayImage, read_image
from ..plots import ImageGrid, data_sheet


MAX_SAMPLE, MAX_SAMPLE_PIXELS = 2000, 300_000_000  # images looked at, and held in memory, together
MAX_DOUBTED = 200  # images of an evaluation that are looked at
MAX_EMPTY = 0.1  # a data set of which a larger fraction comes out empty is refused
DOUBTFUL = 0.05  # a smaller fraction of the images than this may look unlike the others without a warning
INK_WORDS = {"dark": "dark ink on light", "light": "light ink on dark", "opacity": "ink as opacity"}
REMEDY = "Look at the images beside what the model sees (igpt data), and set --invert, --ink or --threshold"


@dataclass
class Inspection:
    """What was found and decided.

    Args:
        processor: With every decision made.
        summary: Two lines.
        warnings: What looks doubtful, each with its remedy.
        refusal: Why the data should not be trained on; None: it may be.
        sheet: Originals beside what the model sees.
    """

    processor: IGPTImageProcessor
    summary: str
    sheet: ImageGrid
    warnings: list[str] = field(default_factory=list)
    refusal: str | None = None

    def report(self, say: Callable[[str], None], warn: Callable[[str], None]):
        """Say what was found and decided, and what looks doubtful."""
        say(self.summary)
        for warning in self.warnings:
            warn(f"warning: {warning}")

    def check(self):
        """Refuse a data set that comes out empty.

        Raises:
            DataError: More than a tenth of the images has no ink, or nothing else.
        """
        if self.refusal is not None:
            raise DataError(self.refusal)


def parse_threshold(text: str) -> float | str:
    """The value of --threshold: a gray level, or a word, which the processor checks."""
    try:
        return float(text)
    except ValueError:
        return text


def sample_images(split: Dataset, count: int = MAX_SAMPLE) -> list[PIL.Image.Image]:
    """At most `count` images of a split, by default 2,000, at random, and no more than fit into memory."""
    rows = np.random.default_rng(0).permutation(len(split))[:count]
    images: list[PIL.Image.Image] = []
    num_pixels = 0
    for batch in split.select_columns("image").select(rows).iter(25):  # decoded images in memory at a time
        for image in batch["image"]:
            images.append(image)
            num_pixels += image.width * image.height
            if num_pixels > MAX_SAMPLE_PIXELS:
                return images
    return images


def inspect_images(images: list[PIL.Image.Image], processor: IGPTImageProcessor, num_images: int | None) -> Inspection:
    """Decide how a data set becomes binary, and judge the result.

    Args:
        images: A sample of the training images.
        processor: What it leaves open is decided.
        num_images: Of the whole data set, for the summary; None: not known.
    """
    decided = processor.decide(images)
    read = [read_image(image, index) for index, image in enumerate(images)]
    inks = [decided.to_ink(image) for image in read]
    pixels = np.stack([decided.fit_ink(ink) for ink in inks])  # (n, size, size)
    inked = pixels.mean(axis=(1, 2))
    empty, full = int((inked == 0).sum()), int((inked == 1).sum())
    summary = (
        f"{'' if num_images is None else f'{num_images:,} '}images, {_sizes(images)}: {_decision(decided)}\n"
        f"{_fraction_kept(decided, inks, pixels):.0%} of the ink kept, {empty} of {len(images):,} images empty"
        f"{f', {full} nothing but ink' if full else ''}"
    )
    inspection = Inspection(decided, summary, data_sheet(images, pixels))
    inspection.warnings = _doubts(decided, read, inks)
    if empty + full > MAX_EMPTY * len(images):
        what = f"{empty} of {len(images)} images have no ink once they are binary" if empty >= full else (
            f"{full} of {len(images)} images are nothing but ink once they are binary"
        )  # fmt: skip
        inspection.refusal = f"{what} ({_decision(decided)}). {REMEDY}."
    return inspection


def _sizes(images: list[PIL.Image.Image]) -> str:
    widths, heights = ([image.size[axis] for image in images] for axis in (0, 1))
    low, high = f"{min(widths)}x{min(heights)}", f"{max(widths)}x{max(heights)}"
    return low if low == high else f"{low} to {high}"


def _decision(processor: IGPTImageProcessor) -> str:
    low, high = processor.levels
    level = low / 255 + (0.5 if isinstance(processor.threshold, str) else processor.threshold) * (high - low) / 255
    parts = [
        INK_WORDS[processor.chosen_ink],
        "local threshold" if processor.threshold == "local" else f"level {level:.2f}",
    ]
    return ", ".join(parts + ["thin strokes widened"] * processor.widen_strokes)


def _fraction_kept(processor: IGPTImageProcessor, inks: list[PIL.Image.Image], pixels: np.ndarray) -> float:
    """Area of the ink that the model sees, by that of the images, as far as it became less."""
    before = after = 0.0
    for ink, binary in zip(inks, pixels, strict=True):
        room = processor.image_size - 2 * processor.margin * processor.is_crop(ink)
        before += (np.asarray(ink) >= 128).sum() * min(1.0, room / max(ink.size)) ** 2
        after += binary.sum()
    return min(1.0, after / before) if before else 1.0


def doubts_of(split: Dataset, processor: IGPTImageProcessor) -> list[str]:
    """What looks as if a split were of another polarity than the data that a processor was decided for."""
    images = sample_images(split, MAX_DOUBTED)
    decided = processor.decide(images)
    inverted = sum(_is_inverted(decided, decided.to_ink(read_image(image, i))) for i, image in enumerate(images))
    if inverted <= DOUBTFUL * len(images):
        return []
    return [
        f"to the model, {inverted} of {len(images)} images have a background of ink, as if they were inverted: it "
        f"knows {INK_WORDS[decided.chosen_ink]}. Invert the files, or train on such images."
    ]


def _is_inverted(processor: IGPTImageProcessor, ink_image: PIL.Image.Image) -> bool:
    """Whether an image's border is mostly ink, and what it surrounds less so, unlike a bar that is cropped."""
    ink = np.asarray(ink_image) >= processor.level * 255
    if min(ink.shape) < 3:
        return False
    border, inside = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]]), ink[1:-1, 1:-1]
    return bool(border.mean() > 0.5 and np.mean(~inside) > 2 * np.mean(~border))


def _doubts(processor: IGPTImageProcessor, read: list[GrayImage], inks: list[PIL.Image.Image]) -> list[str]:
    """What looks as if the images were of two kinds."""
    count, warnings = len(read), []
    inverted = sum(_is_inverted(processor, ink) for ink in inks)
    if inverted > DOUBTFUL * count:
        warnings.append(
            f"{inverted} of {count} images have a background of ink, as if they were inverted. {REMEDY}; if both "
            "kinds are there, invert the files of one."
        )
    transparent = sum(image.opacity is not None for image in read)
    if DOUBTFUL * count < transparent < (1 - DOUBTFUL) * count:
        warnings.append(f"{transparent} of {count} images have transparent pixels, the others none. {REMEDY}.")
    return warnings


class Facts(NamedTuple):
    """What is counted of an image."""

    size: tuple[int, int]
    mode: str
    digest: bytes  # of its size, mode and pixels


def image_facts(image: PIL.Image.Image) -> Facts:
    """The `describe` of `load_splits` that `count_images` needs."""
    pixels = image.convert("RGBA") if image.mode == "P" else image  # an index says nothing without its palette
    content = repr((image.size, image.mode)).encode() + pixels.tobytes()
    return Facts(image.size, image.mode, hashlib.blake2b(content, digest_size=16).digest())


@dataclass
class Census:
    """What all images of a data set are, counted."""

    sizes: Counter
    modes: Counter
    repeated: int = 0  # images that an earlier one of the same split equals
    across: int = 0  # images of validation and test that are in an earlier split, too


def count_images(facts_of_splits: dict[str, list[Facts]]) -> Census:
    """Count sizes, modes and duplicates, pixel by pixel, of all images, by the facts of each."""
    census, seen = Census(Counter(), Counter()), set()
    for facts in facts_of_splits.values():
        digests = [one.digest for one in facts]
        own = set(digests)
        census.sizes.update(one.size for one in facts)
        census.modes.update(one.mode for one in facts)
        census.repeated += len(digests) - len(own)
        census.across += sum(digest in seen for digest in digests)
        seen |= own
    return census
