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


FADE_FROM = 0.6  # part of the training after which the transforms become smaller, unless another is asked for
FADED = 0.9  # part of the training after which there are none
DEFAULT_STRENGTH = 0.04
MAX_LOOKED_AT = 100  # images, to tell whether they are crops
MAX_KEPT_PIXELS = 2**27  # of images that each process keeps as they were read, a byte each
SHAPES = 0.5  # part of the gray images that are transformed as shapes: their edges are not quite those of the others
SUPERSAMPLING = 8  # pixels of a shape for each pixel of a small image, in both directions
SHARPEN = [255 * (level > 127) for level in range(256)]  # gray level -> that of a shape
_STREAM = 2  # second word of the random key; `synthetic_digits` has 0 and 1


@dataclass(eq=False)
class NewImages:
    """The training images of every epoch, made when they are asked for.

    Images of the split are read once and kept, up to `MAX_KEPT_PIXELS` in all.

    Args:
        split: The training split, as `load_splits` returns it.
        processor: Turns images into tokens; what it leaves open is decided by the split.
        seed: Of the images.
        draws_digits: Whether the images are synthetic digits, drawn anew; else they are those of `split`.
        strength: Of the random affine transform, `random_affine`; 0: none.
        num_epochs: Of the whole training; None: the transforms do not fade.
        fade_from: Part of the training after which they do, below 0.9, from which on there are none.
    """

    split: Dataset
    processor: IGPTImageProcessor
    seed: int
    draws_digits: bool = False
    strength: float = 0.0
    num_epochs: float | None = None
    fade_from: float = FADE_FROM

    def __post_init__(self):
        if not self.processor.is_decided:
            self.processor = self.processor.decide(sample_images(self.split))
        self.labels = self.split.with_format("numpy")["label"][:] if self.draws_digits else None
        self.kept, self.room = {}, MAX_KEPT_PIXELS  # index -> what `_read` returns of it; pixels that may be added
        self.ink_levels = [255 * (level >= self.processor.level * 255) for level in range(256)]

    def tokens(self, epoch: int, indices: list[int]) -> np.ndarray:
        """Tokens of the epoch's images: (n,) indices -> (n, num_image_tokens), unsigned integers."""
        return self.tokens_and_gray(epoch, indices)[0]

    def tokens_and_gray(self, epoch: int, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The same, and the gray levels before binarization, (n, image_size, image_size), 0 to 255."""
        strength = self.strength_in(epoch)
        generators = [np.random.default_rng([self.seed, _STREAM, epoch, index]) for index in indices]
        images = self._draw(indices, generators) if self.draws_digits else self._read(indices)
        gray, pixels = [], []
        for (image, is_crop), generator in zip(images, generators, strict=True):
            if strength > 0:
                image = self._transform(image, is_crop, strength, generator)
            gray.append(self.processor.fit(image, is_crop))
            pixels.append(self.processor.binarize_gray(gray[-1], generator))
        return pixels_to_tokens(np.stack(pixels), self.processor.patch_size), np.stack(gray)

    def strength_in(self, epoch: int) -> float:
        """Strength of the transforms in an epoch, or how many there are: in the end, images are as they are."""
        done = 0.0 if self.num_epochs is None else epoch / self.num_epochs
        return self.strength * fading(done, self.fade_from)

    def _draw(self, indices: list[int], generators: list[np.random.Generator]) -> list[tuple[Image.Image, bool]]:
        """New digits of the classes of these images, as `_read` returns images."""
        pairs = zip(self.labels[indices], generators, strict=True)
        images = [self.processor.read(draw_digit(label, generator) > 0) for label, generator in pairs]
        return [(image, self.processor.is_crop(image)) for image in images]

    def _read(self, indices: list[int]) -> list[tuple[Image.Image, bool]]:
        """These images of the split, in their own size, and whether they are crops."""
        read, missing = {}, [index for index in indices if index not in self.kept]
        rows = self.split.select_columns("image")[missing]["image"] if missing else []
        for index, row in zip(missing, rows, strict=True):
            image = self.processor.read(row).copy()  # without its file
            read[index] = image, self.processor.is_crop(image)
            if self.room >= (num_pixels := image.width * image.height):
                self.kept[index] = read[index]
                self.room -= num_pixels
        return [self.kept[index] if index in self.kept else read[index] for index in indices]

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
        box = image.point(self.ink_levels).getbbox()
        return image if box is None else image.crop(box)  # strokes thinner than a pixel may fade


def fading(done: float, fade_from: float) -> float:
    """Factor of the transforms when this part of a training is done: 1 up to `fade_from`, 0 from `FADED` on."""
    return min(max((FADED - done) / (FADED - fade_from), 0.0), 1.0)


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
    angle, shear, *stretch = (strength * generator.standard_normal(4).clip(-2, 2)).tolist()
    cos, sin = math.cos(angle), math.sin(angle)
    turned_and_sheared = np.array([[cos, cos * shear - sin], [sin, sin * shear + cos]])
    return turned_and_sheared * np.exp(stretch)  # each column by its stretch


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
    shape = image.resize(large, Image.Resampling.BILINEAR).point(SHARPEN)
    is_ink = np.asarray(shape) > 0
    if not is_ink.any():
        return image
    center, edges = _center_and_edges(is_ink)
    matrix = random_matrix(strength, generator)
    matrix *= _longest_side(edges) / _longest_side(matrix @ edges)
    moved = matrix @ (edges - center[:, None]) + center[:, None]
    low = np.maximum(np.floor(moved.min(axis=1)) - 2, 0).astype(int)  # all else stays black
    high = np.minimum(np.ceil(moved.max(axis=1)) + 2, large).astype(int)
    transformed = Image.new("L", large)
    transformed.paste(_apply(matrix, shape, center, high - low, center - low), tuple(low.tolist()))
    return transformed.resize(image.size, Image.Resampling.HAMMING)


def _apply(matrix: np.ndarray, image: Image.Image, center: np.ndarray, new_size, new_center: np.ndarray):
    """Transform an image by a matrix (2, 2) about a center (x, y), which comes to `new_center` of the new image."""
    (a, b), (c, d) = matrix.tolist()
    (x, y), (new_x, new_y) = center, new_center
    det = a * d - b * c
    a, b, c, d = d / det, -b / det, -c / det, a / det  # Pillow's is from a place in the new image to one in the old
    entries = (a, b, x - a * new_x - b * new_y, c, d, y - c * new_x - d * new_y)
    width, height = map(int, new_size)
    return image.transform((width, height), Image.Transform.AFFINE, entries, Image.Resampling.BILINEAR)


def _center_and_edges(is_ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ink (h, w) -> its center of mass (2,), and the first and last of it in each row (2, n), as (x, y)."""
    height, width = is_ink.shape
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    in_rows, in_columns = is_ink.sum(axis=1), is_ink.sum(axis=0)
    center = np.array([in_columns @ x, in_rows @ y]) / in_rows.sum()
    rows = in_rows.nonzero()[0]
    first, last = is_ink[rows].argmax(axis=1), width - 1 - is_ink[rows, ::-1].argmax(axis=1)
    return center, np.stack([x[np.concatenate([first, last])], y[np.concatenate([rows, rows])]])


def _longest_side(points: np.ndarray) -> float:
    """Of the box around points (2, n); at least that of one pixel."""
    return max(1.0, float(np.ptp(points, axis=1).max()))
