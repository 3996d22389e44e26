"""The default data set: Persian digits drawn stroke by stroke, so that training needs no download.

A digit is a few pen strokes, each a curve through control points. Every drawing picks one of the usual handwritten
forms of its digit, moves the control points a little, gives the whole a writer's slant, proportions and tremor, and
then draws it with a pen of its own width, white on black:

    >>> image = draw_digit(4, np.random.default_rng(0))
    >>> image.shape, np.unique(image).tolist()
    ((28, 28), [0, 255])
"""

import math
from typing import NamedTuple

import numpy as np


CLASS_NAMES = [str(label) for label in range(10)]
MIN_IMAGE_SIZE = 14

# The usual handwritten forms of each digit: label -> forms -> strokes -> control points (x, y).
# x grows to the right and y downwards, in hundredths of the digit's height. A stroke passes smoothly through its
# points; a corner is the end of one stroke and the start of the next. Equal points of a form stay together.
GLYPHS = {
    0: [
        [[(50, 0), (14, 16), (0, 55), (26, 94), (70, 97), (100, 58), (86, 16), (50, 0)]],  # ring
        [[(60, 4), (22, 12), (2, 50), (14, 90), (52, 100), (84, 70), (80, 24), (46, 0)]],  # narrow ring
        [[(66, 0), (20, 20), (4, 62), (36, 92), (88, 78), (116, 40), (104, 8), (66, 0)]],  # leaning ring
        [[(84, 22), (48, 0), (8, 26), (6, 70), (44, 100), (86, 84), (90, 56)]],  # ring left open
        [[(60, 0), (20, 32), (2, 70), (32, 98), (76, 84), (84, 40), (60, 0)]],  # drop
        [[(34, 34), (62, 28), (74, 50), (50, 72), (28, 54), (46, 42), (58, 54)]],  # dot
    ],
    1: [
        [[(0, 0), (7, 50), (12, 100)]],  # straight
        [[(0, 0), (4, 52), (20, 100)]],  # foot to the right
        [[(6, 0), (1, 50), (8, 100)]],  # bulging to the left
        [[(0, 0), (18, 48), (34, 100)]],  # leaning
        [[(0, 10), (10, 0)], [(10, 0), (15, 50), (22, 100)]],  # small flag
    ],
    2: [
        [[(2, 4), (10, 24), (28, 33), (44, 22), (48, 0)], [(2, 4), (10, 24), (20, 62), (26, 100)]],  # round cup
        [[(0, 2), (5, 26), (24, 31), (40, 20), (44, 0)], [(0, 2), (5, 26), (10, 100)]],  # upright stem
        [[(0, 6), (10, 26), (22, 40)], [(22, 40), (40, 24), (52, 0)], [(22, 40), (29, 68), (38, 100)]],  # Y
        [[(54, 0), (42, 18), (22, 24), (2, 10)], [(2, 10), (20, 52), (38, 100)]],  # shallow cup
        [[(4, 2), (12, 24), (36, 26), (62, 8)], [(4, 2), (12, 24), (22, 60), (34, 100)]],  # flat arm
    ],
    3: [
        [[(0, 8), (8, 26), (26, 32), (36, 8)], [(36, 8), (42, 28), (62, 28), (72, 0)],
         [(0, 8), (8, 26), (14, 60), (22, 100)]],  # two round teeth
        [[(0, 6), (12, 28), (26, 32), (38, 10)], [(38, 10), (44, 28), (62, 26), (70, 2)],
         [(12, 28), (26, 56), (42, 100)]],  # stem from the first cup
        [[(0, 0), (3, 20), (24, 26), (40, 4)], [(40, 4), (48, 24), (68, 22), (80, 2)],
         [(0, 0), (3, 20), (8, 100)]],  # upright stem
        [[(0, 8), (12, 28), (32, 12)], [(32, 12), (48, 28), (76, 0)],
         [(0, 8), (12, 28), (46, 100)]],  # pointed teeth, leaning stem
        [[(0, 4), (10, 26), (30, 28), (42, 8)], [(42, 8), (52, 28), (72, 20), (92, 8)],
         [(0, 4), (10, 26), (18, 100)]],  # long last arm
    ],
    4: [
        [[(2, 14), (10, 32), (36, 36), (64, 32)], [(54, 0), (36, 6), (28, 20), (36, 36)],
         [(2, 14), (10, 32), (20, 100)]],  # printed form
        [[(54, 2), (30, 8), (22, 24), (36, 34), (62, 32)], [(62, 32), (32, 40), (4, 28)],
         [(4, 28), (12, 62), (22, 100)]],  # head written first
        [[(2, 8), (12, 32), (36, 38), (66, 40)], [(60, 0), (44, 12), (36, 38)],
         [(2, 8), (12, 32), (34, 100)]],  # straight upper arm
        [[(0, 6), (4, 28), (30, 30), (56, 28)], [(46, 0), (30, 8), (30, 30)],
         [(0, 6), (4, 28), (8, 100)]],  # upright stem
        [[(52, 2), (26, 8), (18, 24), (34, 36), (62, 34)], [(62, 34), (26, 42), (14, 60), (24, 82), (46, 100)]],  # bow
        [[(54, 5), (28, 0), (12, 17), (26, 34), (46, 36)], [(46, 36), (14, 48), (0, 72), (18, 95), (74, 96)]],  # ain
    ],
    5: [
        [[(46, 0), (20, 32), (2, 70), (12, 94), (34, 96), (48, 68)],
         [(48, 68), (58, 96), (84, 98), (96, 74), (76, 32), (46, 0)]],  # heart upside down
        [[(52, 20), (22, 44), (2, 76), (14, 96), (36, 94), (48, 72)],
         [(48, 72), (62, 96), (90, 96), (96, 76), (70, 38), (30, 0)]],  # heart with a tail
        [[(50, 12), (12, 32), (0, 68), (18, 90), (42, 88), (54, 58)],
         [(54, 58), (70, 90), (102, 90), (112, 60), (90, 24), (50, 12)]],  # wide heart
        [[(44, 24), (14, 46), (4, 78), (30, 98), (64, 92), (74, 64), (52, 28), (22, 0)]],  # drop with a tail
        [[(66, 2), (38, 28), (8, 60), (12, 92), (44, 100), (72, 84), (66, 54), (38, 24), (20, 0)]],  # crossing on top
        [[(44, 4), (24, 46), (0, 92)], [(0, 92), (30, 94), (46, 68)], [(46, 68), (62, 94), (98, 92)],
         [(98, 92), (74, 46), (44, 4)]],  # triangle
    ],
    6: [
        [[(20, 4), (4, 14), (4, 34), (22, 44), (44, 38), (64, 0)], [(64, 0), (57, 46), (42, 100)]],  # curled cup
        [[(2, 0), (6, 24), (20, 38), (42, 34), (60, 2)], [(60, 2), (44, 46), (22, 100)]],  # like a y
        [[(6, 2), (2, 26), (18, 40), (54, 36)], [(56, 2), (54, 36), (58, 100)]],  # like a 4
        [[(32, 0), (8, 20), (10, 36), (36, 40), (66, 18)], [(66, 18), (42, 54), (12, 100)]],  # cup open to the right
        [[(0, 6), (30, 5), (66, 8)], [(66, 8), (72, 50), (82, 100)]],  # like a 7
        [[(0, 16), (10, 3), (32, 7), (60, 8)], [(60, 8), (62, 52), (78, 100)]],  # like a 7, curved bar
    ],
    7: [
        [[(0, 0), (20, 48), (40, 100)], [(40, 100), (58, 52), (82, 0)]],  # sharp
        [[(0, 2), (14, 46), (32, 94), (46, 94), (60, 48), (80, 0)]],  # rounded
        [[(0, 26), (12, 56), (28, 98)], [(28, 98), (50, 50), (84, 0)]],  # short left arm
        [[(0, 10), (12, 4), (26, 44), (44, 100)], [(44, 100), (58, 52), (88, 0)]],  # hooked start
        [[(0, 0), (30, 44), (54, 98)], [(54, 98), (66, 52), (88, 4)]],  # leaning
    ],
    8: [
        [[(0, 100), (22, 48), (42, 0)], [(42, 0), (60, 50), (82, 100)]],  # sharp
        [[(0, 98), (16, 54), (34, 6), (48, 6), (62, 50), (82, 100)]],  # rounded
        [[(0, 100), (20, 50), (36, 0)], [(36, 0), (50, 46), (68, 80), (94, 98)]],  # foot flared
        [[(2, 94), (6, 48), (12, 0)], [(12, 0), (44, 46), (88, 88)]],  # left leg upright
        [[(0, 94), (30, 50), (54, 2)], [(54, 2), (62, 50), (76, 100)]],  # leaning
    ],
    9: [
        [[(50, 22), (36, 2), (12, 6), (2, 26), (16, 42), (38, 40), (50, 22)], [(50, 22), (54, 58), (62, 100)]],  # oval
        [[(46, 4), (20, 4), (2, 22), (12, 40), (36, 40), (50, 26)], [(46, 4), (50, 26), (58, 100)]],  # flat top
        [[(46, 0), (24, 14), (2, 36)], [(2, 36), (26, 42), (50, 38)], [(46, 0), (50, 38), (54, 100)]],  # like a 4
        [[(44, 28), (44, 8), (24, 0), (4, 14), (8, 34), (28, 40), (44, 28)], [(44, 28), (56, 62), (78, 100)]],  # foot
        [[(50, 26), (40, 4), (16, 2), (2, 20), (12, 38), (34, 38), (50, 26)], [(50, 26), (48, 64), (34, 100)]],  # bent
    ],
}  # fmt: skip

# Typical height of each digit as a fraction of the image's side; a drawing that outgrows the image is shrunk to fit.
HEIGHTS = (0.32, 0.95, 1.02, 1.02, 1.05, 0.85, 1.02, 0.84, 0.87, 1.02)

# The curve between points b and c of a, b, c, d at time t is [1, t, t^2, t^3] @ _CATMULL_ROM @ [a, b, c, d].
_CATMULL_ROM = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
_STEP = 3  # hundredths of the digit's height from one point of the pen's path to the next


class _Form(NamedTuple):
    """One form of a digit: its control points (p, 2), and the weights (n, p) that make them a pen path (n, 2)."""

    points: np.ndarray
    weights: np.ndarray


def _compile(strokes: list[list[tuple[int, int]]]) -> _Form:
    """Turn strokes into distinct control points and the Catmull-Rom weights of the pen path through them."""
    points = sorted({point for stroke in strokes for point in stroke})
    weights = []
    for stroke in strokes:
        knots = [points.index(point) for point in (stroke[0], *stroke, stroke[-1])]  # the ends count twice
        for i in range(len(stroke) - 1):
            steps = math.ceil(math.dist(stroke[i], stroke[i + 1]) / _STEP)
            times = np.linspace(0, 1, steps + 1)[:, None]
            weights.append(times ** np.arange(4) @ _CATMULL_ROM @ np.eye(len(points))[knots[i : i + 4]])
    return _Form(np.array(points) / 100, np.concatenate(weights))


_FORMS = {label: [_compile(strokes) for strokes in forms] for label, forms in GLYPHS.items()}


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
