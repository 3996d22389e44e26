"""Ink on paper: gray images of uneven light, and strokes too thin to survive shrinking.

Both functions take and give gray images whose ink is light: 0 is paper, 255 is full ink.
"""

import numpy as np
from PIL import Image, ImageFilter


PAPER_SIDE = 112  # the paper's brightness varies slowly: it is measured on an image of at most this side
PAPER_WINDOW = 29  # of these pixels: wider than a stroke, narrower than a shadow
WORKING_SIDE = 448  # light is evened out, and noise averaged, at no more than this side
LEAST_CONTRAST = 0.12  # of ink against its paper: below, it is the paper's grain
SUBPIXELS = 8  # strokes are widened on a grid of so many pixels to one of the model


def otsu_level(counts: np.ndarray) -> int:
    """The lowest level of the brighter class that Otsu's method finds in a histogram (256,): 1 to 255.

    Otsu (1979): "A threshold selection method from gray-level histograms". It maximizes the variance between classes.
    """
    levels = np.arange(len(counts))
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[::-1][1:]  # (255,): weights of both classes
    sums = np.cumsum(counts * levels)
    difference = sums[:-1] / below.clip(1e-12) - (sums[-1] - sums[:-1]) / above.clip(1e-12)
    variance = below * above * difference**2
    best = np.flatnonzero(variance >= variance.max() * (1 - 1e-9))  # a plateau where levels between are not used
    return int(best.mean()) + 1


def even_out_light(gray: Image.Image) -> Image.Image:
    """Divide by the light that falls on the paper: shadows and gradients vanish, half the ink's contrast becomes 128.

    The paper's brightness is a morphological closing: the strokes, narrower than its window, are filled by the paper
    around them, while the edge of a shadow stays where it is.
    """
    gray = gray.reduce(max(1, round(max(gray.size) / WORKING_SIDE)))
    small = gray.reduce(max(1, round(max(gray.size) / PAPER_SIDE)))
    light = 255 - _opened(np.asarray(small), PAPER_WINDOW)
    paper = Image.fromarray(light).resize(gray.size, Image.Resampling.BILINEAR)
    ink = 1 - (255.0 - np.asarray(gray)) / np.asarray(paper, dtype=np.float32).clip(1)
    levels = np.rint(ink.clip(0, 1) * 255).astype(np.uint8)
    level = max(otsu_level(np.bincount(levels.ravel(), minlength=256)), LEAST_CONTRAST * 255)
    return Image.fromarray((levels * (127.5 / level)).clip(0, 255).round().astype(np.uint8))


def has_dark_strokes(gray: Image.Image) -> bool:
    """Whether what stands out in a photograph is darker than what is around it, whatever light falls on it.

    Around a point most is paper, so that the median there is paper; medians follow the edges of shadows.
    """
    small = gray.reduce(max(1, round(2 * max(gray.size) / PAPER_SIDE)))
    around = small.filter(ImageFilter.MedianFilter(PAPER_WINDOW // 4 * 2 + 1))
    difference = np.asarray(small, dtype=float) - np.asarray(around)
    return bool((difference**3).sum() < 0)


def _opened(levels: np.ndarray, window: int) -> np.ndarray:
    """Morphological opening of (h, w) by a square: what is light and narrower than the window vanishes.

    Squares may reach over the edge, so that the corner of a shadow at the edge is not taken for a stroke.
    """
    padded = np.pad(levels, window, constant_values=255)
    for reduce in (np.min, np.max):
        for _ in range(2):  # along the rows, then along the columns
            padded = reduce(np.lib.stride_tricks.sliding_window_view(padded, window, axis=1), axis=2).T
    return padded[1:-1, 1:-1]  # each of both takes (window - 1) / 2 from each side


def widen_thin_strokes(ink: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The strokes that would be thinner than one pixel after shrinking to `size`, made that wide, alone on black.

    They grow pixel by pixel until a disc of that diameter fits into them. Strokes that are wide enough are left out.

    Args:
        ink: Mode "L", 0 and 255.
        size: (width, height) in pixels of the model.
    """
    width, height = (SUBPIXELS * side for side in size)
    is_small = ink.width < width
    fine = ink.resize((width, height), Image.Resampling.BILINEAR if is_small else Image.Resampling.BOX)
    mask = np.pad(np.asarray(fine) >= (128 if is_small else 32), SUBPIXELS)  # a stroke may grow past the edge
    thin = mask & ~_dilate(_open(mask), 2)  # without the rough edges and corners of wide strokes
    grown = mask & _dilate(thin, SUBPIXELS)  # and where they join others
    for _ in range(SUBPIXELS // 2):
        thin &= ~_open(grown | mask)
        if not thin.any():
            break
        thin = _dilate(thin, 1)
        grown |= thin
    inner = grown[SUBPIXELS:-SUBPIXELS, SUBPIXELS:-SUBPIXELS]
    return Image.fromarray(inner.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)


def _open(mask: np.ndarray) -> np.ndarray:
    """What of a mask a disc of one model pixel's diameter covers without leaving it."""
    return _dilate(~_dilate(~mask, SUBPIXELS // 2), SUBPIXELS // 2)


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask (h, w) grown by a disc."""
    height, width = mask.shape
    padded = np.pad(mask, radius)
    result = np.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        reach = int((radius**2 - dy**2) ** 0.5)
        rows = padded[radius + dy : radius + dy + height]
        for dx in range(-reach, reach + 1):
            result |= rows[:, radius + dx : radius + dx + width]
    return result


def count_pieces(mask: np.ndarray) -> int:
    """How many connected pieces a small mask (h, w) has, corners included."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # each pixel takes the highest label around it, until none changes
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(labels, 1), (3, 3))
        highest = np.where(mask, windows.max(axis=(2, 3)), 0)
        if np.array_equal(highest, labels):
            return len(np.unique(labels[mask]))
        labels = highest
