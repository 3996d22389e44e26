"""Training images that are new in each epoch: synthetic digits drawn anew, and random affine transforms.

An image depends on the seed, the epoch and its index alone: a resumed run, or one with more processes or DataLoader
workers, trains on the same images. Validation and test images are never touched.
"""

import math
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from PIL import Image

from ..model.image_processing_igpt import IGPTImageProcessor
from ..model.tokens import pixels_to_tokens
from .inspection import sample_images
from .synthetic import draw_digit


FADE = (0.6, 0.9)  # parts of the training between which the transforms become smaller, from full strength to none
DEFAULT_STRENGTH = 0.04
MAX_LOOKED_AT = 100  # images, to tell whether they are crops
_STREAM = 2  # second word of the random key; `synthetic_digits` has 0 and 1


@dataclass(frozen=True)
class NewImages:
    """The training images of every epoch, made when they are asked for.

    Args:
        split: The training split, as `load_splits` returns it.
        processor: Turns images into tokens; what it leaves open is decided by the split.
        seed: Of the images.
        draws_digits: Whether the images are synthetic digits, drawn anew; else they are those of `split`.
        strength: Of the random affine transform, `random_affine`; 0: none.
        num_epochs: Of the whole training; None: the transforms do not fade.
    """

    split: Dataset
    processor: IGPTImageProcessor
    seed: int
    draws_digits: bool = False
    strength: float = 0.0
    num_epochs: float | None = None

    def __post_init__(self):
        if not self.processor.is_decided:
            object.__setattr__(self, "processor", self.processor.decide(sample_images(self.split)))

    def tokens(self, epoch: int, indices: list[int]) -> np.ndarray:
        """Tokens of the epoch's images: (n,) indices -> (n, num_image_tokens), unsigned integers."""
        return self.tokens_and_gray(epoch, indices)[0]

    def tokens_and_gray(self, epoch: int, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The same, and the gray levels before binarization, (n, image_size, image_size), 0 to 255."""
        column, strength = "label" if self.draws_digits else "image", self.strength_in(epoch)
        rows = self.split.select_columns(column)[indices][column]
        gray, pixels = [], []
        for index, row in zip(indices, rows, strict=True):
            generator = np.random.default_rng([self.seed, _STREAM, epoch, index])
            gray.append(self._gray(row, strength, generator))
            pixels.append(self.processor.binarize_gray(gray[-1], generator))
        return pixels_to_tokens(np.stack(pixels), self.processor.patch_size), np.stack(gray)

    def strength_in(self, epoch: int) -> float:
        """Strength of the transforms in an epoch: in the end, the model sees the images as they are."""
        if self.num_epochs is None:
            return self.strength
        first, last = (part * self.num_epochs for part in FADE)
        return self.strength * min(max((last - epoch) / (last - first), 0.0), 1.0)

    def _gray(self, row, strength: float, generator: np.random.Generator) -> np.ndarray:
        """One image, or the digit to draw -> gray levels (image_size, image_size)."""
        image = self.processor.read(draw_digit(row, generator) > 0 if self.draws_digits else row)
        is_crop = self.processor.is_crop(image)
        if strength > 0:
            image = random_affine(image, strength, generator, expand=is_crop)
            image = self._crop(image) if is_crop else image
        return self.processor.fit(image, is_crop)

    def _crop(self, image: Image.Image) -> Image.Image:
        """Cut off what lies around the ink."""
        ink = np.asarray(image) >= self.processor.level * 255
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        if len(rows) == 0:  # strokes thinner than a pixel may fade
            return image
        return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def default_strength(split: Dataset, processor: IGPTImageProcessor) -> float:
    """Strength that suits a training split: `DEFAULT_STRENGTH` where most images are crops, otherwise 0.

    The ink of a crop reaches all four edges: its size and place say nothing, and a little of its shape may change.
    """
    rows = np.linspace(0, len(split) - 1, min(MAX_LOOKED_AT, len(split))).astype(int)
    crops = [processor.is_crop(processor.read(image)) for image in split.select_columns("image")[rows]["image"]]
    return DEFAULT_STRENGTH if 2 * sum(crops) > len(crops) else 0.0


def random_affine(image: Image.Image, strength: float, generator: np.random.Generator, expand: bool) -> Image.Image:
    """Rotate, shear and stretch a gray image at random about its center, at its own resolution.

    The rotation in radians, the shear, and the logarithms of the stretches in width and height are normal with the
    standard deviation `strength`, cut off at two deviations: at 0.04, about 2 degrees and 4%.

    Args:
        image: A PIL image of mode "L", white on black.
        strength: Standard deviation of each of the four.
        generator: Of the four random numbers.
        expand: Make room for all of the image, instead of keeping its size.
    """
    angle, shear, *stretch = (strength * np.clip(generator.standard_normal(4), -2, 2)).tolist()
    cos, sin, width, height = math.cos(angle), math.sin(angle), math.exp(stretch[0]), math.exp(stretch[1])
    a, b = width * cos, height * (shear * cos - sin)  # [[a, b], [c, d]] = rotation @ shear @ stretch
    c, d = width * sin, height * (shear * sin + cos)
    old, new = image.size, image.size
    if expand:  # by as much on both sides, so that a small transform does not move edges by half a pixel
        needed = abs(a) * old[0] + abs(b) * old[1], abs(c) * old[0] + abs(d) * old[1]
        new = tuple(side + 2 * max(0, math.ceil((more - side) / 2)) for side, more in zip(old, needed, strict=True))
    # Pillow asks for the inverse: from a place in the new image, seen from its upper left corner, to one in the old.
    a, b, c, d = (entry / (width * height) for entry in (d, -b, -c, a))
    x, y = (old[0] - a * new[0] - b * new[1]) / 2, (old[1] - c * new[0] - d * new[1]) / 2
    return image.transform(new, Image.Transform.AFFINE, (a, b, x, c, d, y), Image.Resampling.BILINEAR)
