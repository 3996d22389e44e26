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
SHAPES = 0.5  # part of the gray images that are transformed as shapes: their edges are not quite those of the others
SUPERSAMPLING = 8  # pixels of a shape for each pixel of a small image, in both directions
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
        """Strength of the transforms in an epoch, or how many there are: in the end, images are as they are."""
        return self.strength if self.num_epochs is None else self.strength * fading(epoch, self.num_epochs)

    def _gray(self, row, strength: float, generator: np.random.Generator) -> np.ndarray:
        """One image, or the digit to draw -> gray levels (image_size, image_size)."""
        image = self.processor.read(draw_digit(row, generator) > 0 if self.draws_digits else row)
        is_crop = self.processor.is_crop(image)
        if strength > 0:
            image = self._transform(image, is_crop, strength, generator)
        return self.processor.fit(image, is_crop)

    def _transform(self, image: Image.Image, is_crop: bool, strength: float, generator) -> Image.Image:
        """Transform an image as its kind wants it."""
        if is_crop:
            return self._crop(random_affine(image, strength, generator, expand=True))
        if self.processor.binarize != "stochastic" or image.size != (self.processor.image_size,) * 2:
            return random_affine(image, strength, generator, expand=False)
        is_chosen = generator.random() < SHAPES * strength / self.strength  # fewer of them, instead of weaker ones
        return random_shape(image, self.strength, generator) if is_chosen else image

    def _crop(self, image: Image.Image) -> Image.Image:
        """Cut off what lies around the ink."""
        ink = np.asarray(image) >= self.processor.level * 255
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        if len(rows) == 0:  # strokes thinner than a pixel may fade
            return image
        return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def fading(done: float, whole: float) -> float:
    """Factor of the transforms when so much of a training is done: 1 at first, 0 in the end."""
    first, last = (part * whole for part in FADE)
    return min(max((last - done) / (last - first), 0.0), 1.0)


def default_strength(split: Dataset, processor: IGPTImageProcessor) -> float:
    """Strength that suits a training split: `DEFAULT_STRENGTH` where most images are crops, otherwise 0.

    The ink of a crop reaches all four edges: its size and place say nothing, and a little of its shape may change.
    """
    rows = np.linspace(0, len(split) - 1, min(MAX_LOOKED_AT, len(split))).astype(int)
    crops = [processor.is_crop(processor.read(image)) for image in split.select_columns("image")[rows]["image"]]
    return DEFAULT_STRENGTH if 2 * sum(crops) > len(crops) else 0.0


def random_matrix(strength: float, generator: np.random.Generator) -> np.ndarray:
    """A random rotation times a shear times a stretch: (2, 2), for columns (x, y).

    The rotation in radians, the shear, and the logarithms of the stretches in width and height are normal with the
    standard deviation `strength`, cut off at two deviations: at 0.04, about 2 degrees and 4%.
    """
    angle, shear, *stretch = (strength * np.clip(generator.standard_normal(4), -2, 2)).tolist()
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag(np.exp(stretch))


def random_affine(image: Image.Image, strength: float, generator: np.random.Generator, expand: bool) -> Image.Image:
    """Rotate, shear and stretch a gray image at random about its center, at its own resolution.

    Args:
        image: A PIL image of mode "L", white on black.
        strength: As `random_matrix` takes it.
        generator: Of the random numbers.
        expand: Make room for all of the image, instead of keeping its size.
    """
    matrix = random_matrix(strength, generator)
    old = new = np.array(image.size)
    if expand:  # by as much on both sides, so that a small transform does not move edges by half a pixel
        new = old + 2 * np.ceil(np.maximum(abs(matrix) @ old - old, 0) / 2).astype(int)
    return _apply(matrix, image, old / 2, new, new / 2)


def random_shape(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Transform the shape in a small gray image at random; it stays as large as it was, and where it was.

    A small image with gray edges is a larger one that was shrunk, and to resample it would blur its edges once more.
    Where a gray level is the probability of a pixel, that is another distribution of images. So the image is enlarged
    and its edges made sharp; what is transformed is this shape, and then it is shrunk. Small images are often
    normalized, too: the ink's longest side and its center of mass remain.

    Args:
        image: A PIL image of mode "L", white on black.
        strength: As `random_matrix` takes it.
        generator: Of the random numbers.
    """
    large = (SUPERSAMPLING * image.width, SUPERSAMPLING * image.height)
    shape = image.resize(large, Image.Resampling.BILINEAR).point(lambda level: 255 * (level > 127))
    points = np.stack(np.nonzero(np.asarray(shape)))[::-1] + 0.5  # (2, n) columns and rows of the ink
    if points.shape[1] == 0:
        return image
    center = points.mean(axis=1, keepdims=True)
    matrix = random_matrix(strength, generator)
    matrix *= _longest_side(points) / _longest_side(matrix @ points)
    return _apply(matrix, shape, center[:, 0], large, center[:, 0]).resize(image.size, Image.Resampling.HAMMING)


def _apply(matrix: np.ndarray, image: Image.Image, center: np.ndarray, new_size, new_center: np.ndarray):
    """Transform an image by a matrix (2, 2) about a center (x, y), which comes to `new_center` of the new image."""
    inverse = np.linalg.inv(matrix)  # Pillow asks for it: from a place in the new image to one in the old
    entries = np.column_stack([inverse, center - inverse @ new_center]).ravel().tolist()
    width, height = map(int, new_size)
    return image.transform((width, height), Image.Transform.AFFINE, entries, Image.Resampling.BILINEAR)


def _longest_side(points: np.ndarray) -> float:
    """Of the box around points (2, n); at least that of one pixel."""
    return max(1.0, float(np.ptp(points, axis=1).max()))
