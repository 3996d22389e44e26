"""The default data set: Persian digits drawn stroke by stroke, so that training needs no download.

A digit is a few pen strokes, each a curve through control points. Every drawing picks one of the usual handwritten
forms of its digit, moves the control points a little, gives the whole a writer's slant, proportions and tremor, and
then draws it with a pen of its own width, white on black:

    >>> image = draw_digit(4, np.random.default_rng(0))
    >>> image.shape, np.unique(image).tolist()
    ((28, 28), [0, 255])
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml


CLASS_NAMES = [str(label) for label in range(10)]
MIN_IMAGE_SIZE = 14

# Label -> form -> strokes -> control points: the file says what they mean.
GLYPHS = yaml.safe_load(Path(__file__).with_name("glyphs.yaml").read_text(encoding="utf-8"))

# Typical height of each digit as a fraction of the image's side; a drawing that outgrows the image is shrunk to fit.
HEIGHTS = (0.32, 0.95, 1.02, 1.02, 1.05, 0.85, 1.02, 0.84, 0.87, 1.02)

# The curve between points b and c of a, b, c, d at time t is [1, t, t^2, t^3] @ _CATMULL_ROM @ [a, b, c, d].
_CATMULL_ROM = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
_STEP = 3  # hundredths of the digit's height from one point of the pen's path to the next


class _Form(NamedTuple):
    """One form of a digit: its control points (p, 2), and the weights (n, p) that make them a pen path (n, 2)."""

    points: np.ndarray
    weights: np.ndarray


def _compile(strokes: list[list[list[int]]]) -> _Form:
    """Turn strokes into distinct control points and the Catmull-Rom weights of the pen path through them."""
    points = sorted({tuple(point) for stroke in strokes for point in stroke})
    weights = []
    for stroke in strokes:
        knots = [points.index(tuple(point)) for point in (stroke[0], *stroke, stroke[-1])]  # the ends count twice
        for i in range(len(stroke) - 1):
            steps = math.ceil(math.dist(stroke[i], stroke[i + 1]) / _STEP)
            times = np.linspace(0, 1, steps + 1)[:, None]
            weights.append(times ** np.arange(4) @ _CATMULL_ROM @ np.eye(len(points))[knots[i : i + 4]])
    return _Form(np.array(points) / 100, np.concatenate(weights))


_FORMS = {label: [_compile(strokes) for strokes in forms.values()] for label, forms in GLYPHS.items()}


def _generator(*key: int) -> np.random.Generator:
    """Return a random generator of its own for each key; the same key gives the same numbers everywhere."""
    return np.random.Generator(np.random.PCG64(key))


def _normal(rng: np.random.Generator, size: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Sample standard normal numbers of the given shape, cut off at two deviations."""
    return np.clip(rng.standard_normal(size), -2, 2)


def _pen_path(label: int, rng: np.random.Generator) -> np.ndarray:
    """Return a pen path (n, 2) through the jittered control points of one form of the digit."""
    form = _FORMS[label][rng.integers(len(_FORMS[label]))]
    return form.weights @ (form.points + 0.027 * _normal(rng, form.points.shape))  # (n, p) @ (p, 2) -> (n, 2)


def _write(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a pen path (n, 2) one writer's proportions, slant and tremor."""
    width, head, bow, slant, turn, tremor = _normal(rng, 6)
    x, y = path.T
    bulge = y * (1 - y)  # nothing at the top and the bottom, most half way down
    written = np.stack([x * np.exp(0.14 * width) + 0.11 * bow * bulge, y + 0.2 * head * bulge], axis=1)
    written = written @ np.array([[1, 0.06 * turn], [0.1 * slant, 1]])
    # The tremor is three waves across the paper, not along the pen's path, so strokes that touch still do.
    waves = rng.uniform(-20, 20, (2, 3))
    phases, directions = rng.uniform(0, 2 * np.pi, (2, 3))
    shake = 0.006 * np.exp(0.4 * tremor) * np.sin(path @ waves + phases)  # (n, 3)
    return written + shake @ np.stack([np.cos(directions), np.sin(directions)], axis=1)  # (n, 3) @ (3, 2)


def _pen_radius(num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Return the radius (n,) of the pen along its path, in image sides; pressure makes it swell and thin."""
    width, pressure = _normal(rng, 2)
    start, swings = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2)
    swell = np.sin(np.linspace(start, start + 2 * np.pi * swings, num_points))
    return 0.066 * np.exp(0.17 * width) * (1 + 0.1 * pressure * swell)


def _fit(path: np.ndarray, radius: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Center the ink in an image of side 1, shrunk if it would outgrow it; return pen path (n, 2) and radius (n,).

    `shift` (2,) moves the ink off the center, no further than to the image's edge.
    """
    low, high = (path - radius[:, None]).min(axis=0), (path + radius[:, None]).max(axis=0)
    shrink = min(1, 1 / (high - low).max())
    margin = (1 - (high - low) * shrink) / 2
    return (path - (low + high) / 2) * shrink + 0.5 + np.clip(shift, -margin, margin), radius * shrink


def _ink(path: np.ndarray, radius: np.ndarray, image_size: int) -> np.ndarray:
    """Return an image (image_size, image_size), white where a pixel's center is in a disc along the path (n, 2)."""
    centers = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    x, y, radius = np.column_stack([path, radius]).astype(np.float32).T[:, :, None]  # each (n, 1)
    columns = (centers - x) ** 2  # (n, image_size)
    rows = radius**2 - (centers - y) ** 2
    inside = (columns[:, None, :] < rows[:, :, None]).any(axis=0)  # (n, rows, columns) -> (rows, columns)
    return np.where(inside, np.uint8(255), np.uint8(0))


def _check_image_size(image_size: int) -> None:
    """Raise ValueError for an image too small to show a digit."""
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}; a digit needs at least {MIN_IMAGE_SIZE} pixels a side")


def draw_digit(label: int, rng: np.random.Generator, image_size: int = 28) -> np.ndarray:
    """Draw one handwritten Persian digit, white on black.

    Returns (image_size, image_size) of uint8, each value 0 or 255. Raises ValueError if `label` is not a digit or the
    image is too small to show one.
    """
    _check_image_size(image_size)
    if label not in _FORMS:
        raise ValueError(f"label is {label!r}; choose one of the digits 0 to 9")
    path = _write(_pen_path(label, rng), rng) * HEIGHTS[label] * np.exp(0.16 * _normal(rng))
    radius = _pen_radius(len(path), rng)
    shift = rng.uniform(-0.5, 0.5, 2) / image_size  # the pixel grid may fall anywhere on the ink
    return _ink(*_fit(path, radius, shift), image_size)


def synthetic_digits(num_images: int = 20_000, seed: int = 42, image_size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Make a shuffled data set in which every ten images show the ten digits.

    Image i depends only on `seed` and i, so fewer images are the beginning of more. Returns images
    (num_images, image_size, image_size) of uint8, each value 0 or 255, and labels (num_images,) of uint8. Raises
    ValueError if `num_images` is not positive or the images are too small.
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; ask for at least 1")
    _check_image_size(image_size)
    tens = range(math.ceil(num_images / 10))
    labels = np.concatenate([_generator(seed, 0, ten).permutation(10) for ten in tens])[:num_images]
    images = [draw_digit(label, _generator(seed, 1, i), image_size) for i, label in enumerate(labels)]
    return np.stack(images), labels.astype(np.uint8)
