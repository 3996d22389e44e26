"""Ink on paper: gray images of uneven light, and strokes too thin to survive shrinking.

`even_out_light` and `draw_whole` take and give gray images whose ink is light: 0 is paper, 255 is full ink.
"""

import numpy as np
from PIL import Image, ImageFilter


PAPER_SIDE = 112  # the paper's brightness varies slowly: it is measured on an image of at most this side
PAPER_RADIUS = 14  # of these pixels: a disc wider than a stroke, narrower than a shadow
WORKING_SIDE = 448  # light is evened out, and noise averaged, at no more than this side
LEAST_CONTRAST = 0.12  # of ink against its paper: below, it is the paper's grain
NOISE = 3  # ink is so many times as dark as the noise (root mean square)
SPECK = 5  # side of the square whose median is the paper: without it, the paper would be as light as its noise
SUBPIXELS = 8  # strokes are widened on a grid of so many pixels to one of the model
# A piece of ink has so many of these pixels a quarter above the threshold, between it and full ink; noise has fewer.
LEAST_AREA, STRONG = 8, 0.25


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

    The paper's brightness is a morphological closing: the strokes, narrower than its disc, are filled by the paper
    around them, while the edge of a shadow stays where it is.
    """
    gray = gray.reduce(max(1, round(max(gray.size) / WORKING_SIDE)))
    small = gray.reduce(max(1, round(max(gray.size) / PAPER_SIDE))).filter(ImageFilter.MedianFilter(SPECK))
    around = np.pad(np.asarray(small), PAPER_RADIUS, constant_values=255)  # shadows go on past the edge
    light = 255 - _open(around, PAPER_RADIUS)[PAPER_RADIUS:-PAPER_RADIUS, PAPER_RADIUS:-PAPER_RADIUS]
    paper = Image.fromarray(light).resize(gray.size, Image.Resampling.BILINEAR)
    ink = 1 - (255.0 - np.asarray(gray)) / np.asarray(paper, dtype=np.float32).clip(1)
    levels = np.rint(ink.clip(0, 1) * 255).astype(np.uint8)
    noise = float(np.sqrt(np.mean(ink[ink < 0] ** 2))) if (ink < 0).any() else 0.0  # of what is lighter than its paper
    least = max(LEAST_CONTRAST, NOISE * noise) * 255
    level = max(otsu_level(np.bincount(levels.ravel(), minlength=256)), least)
    return Image.fromarray((levels * (127.5 / level)).clip(0, 255).round().astype(np.uint8))


def has_dark_strokes(gray: Image.Image) -> bool:
    """Whether what stands out in a photograph is darker than what is around it, whatever light falls on it.

    Around a point most is paper, so that the median there is paper; medians follow the edges of shadows.
    """
    small = gray.reduce(max(1, round(2 * max(gray.size) / PAPER_SIDE)))
    around = small.filter(ImageFilter.MedianFilter(PAPER_RADIUS + 1))
    difference = np.asarray(small, dtype=float) - np.asarray(around)
    return bool((difference**3).sum() < 0)


def draw_whole(ink: Image.Image, fitted: Image.Image, level: float) -> Image.Image:
    """What shrinking has made of the ink, with strokes at least a pixel wide, and in as many pieces as the ink has.

    Args:
        ink: Mode "L", light ink in its own size.
        fitted: The same, shrunk by a filter, which thins and breaks narrow strokes.
        level: From this gray level on, 0 to 255, a pixel is ink.
    """
    mask = _pieces_of_ink(ink, level, fitted.size)
    wide = _widen_thin_strokes(mask)
    added = Image.fromarray(wide.astype(np.uint8) * 255).resize(fitted.size, Image.Resampling.BILINEAR)
    return Image.fromarray(_join_pieces(np.maximum(np.asarray(fitted), np.asarray(added)), mask | wide, level))


def _pieces_of_ink(ink: Image.Image, level: float, size: tuple[int, int]) -> np.ndarray:
    """Where ink is, without specks: (SUBPIXELS * height, SUBPIXELS * width), booleans."""
    fine = tuple(SUBPIXELS * side for side in size)
    is_small = ink.width < fine[0]

    def find(lowest: float) -> np.ndarray:
        binary = ink.point([255 * (gray >= lowest) for gray in range(256)])
        sharp = binary.resize(fine, Image.Resampling.BILINEAR if is_small else Image.Resampling.BOX)
        return np.asarray(sharp) >= (128 if is_small else 32)

    labels = label_pieces(find(level))
    strong_areas = np.bincount(labels[find(level + STRONG * (255 - level))], minlength=labels.max() + 1)
    strong_areas[0] = 0  # the paper
    return (strong_areas >= LEAST_AREA)[labels]


def _widen_thin_strokes(mask: np.ndarray) -> np.ndarray:
    """The strokes thinner than a model pixel, made that wide, without the others.

    They grow pixel by pixel until a disc of that diameter fits into them.
    """
    mask = np.pad(mask, SUBPIXELS)  # a stroke may grow past the edge
    thin = mask & ~dilate(_open(mask, SUBPIXELS // 2), 2)  # without the rough edges and corners of wide strokes
    grown = mask & dilate(thin, SUBPIXELS)  # and where they join others
    for _ in range(SUBPIXELS // 2):
        thin &= ~_open(grown | mask, SUBPIXELS // 2)
        if not thin.any():
            break
        thin = dilate(thin, 1)
        grown |= thin
    return grown[SUBPIXELS:-SUBPIXELS, SUBPIXELS:-SUBPIXELS]


def _join_pieces(gray: np.ndarray, mask: np.ndarray, level: float) -> np.ndarray:
    """Make ink of those pixels, (h, w), without which a connected piece of the fine mask would be in parts.

    Pixels that the piece fills most are added until it is whole; those that were not needed are taken away again.
    """
    height, width = gray.shape
    labels = label_pieces(mask).reshape(height, SUBPIXELS, width, SUBPIXELS)
    for label in np.unique(labels[labels > 0]):
        share = (labels == label).mean(axis=(1, 3))  # (h, w): of each pixel
        is_on = gray >= level

        def is_whole(is_on: np.ndarray, is_own=share > 0) -> bool:
            return len(np.unique(label_pieces(is_on)[is_on & is_own])) == 1

        added: list[tuple[int, int]] = []
        for index in np.argsort(-share, axis=None, kind="stable").tolist():
            if is_whole(is_on):
                break
            pixel = divmod(index, width)
            if not is_on[pixel]:
                is_on[pixel] = True
                added.append(pixel)
        for pixel in reversed(added):
            is_on[pixel] = False
            is_on[pixel] = not is_whole(is_on)
        gray = np.where(is_on & (gray < level), np.uint8(255), gray)
    return gray


def _open(levels: np.ndarray, radius: int) -> np.ndarray:
    """Morphological opening of (h, w), uint8 or bool: what is light and narrower than a disc vanishes."""
    return dilate(~dilate(~levels, radius), radius)


def dilate(levels: np.ndarray, radius: int) -> np.ndarray:
    """The highest level, (h, w), within a disc around each pixel."""
    height, width = levels.shape
    padded = np.pad(levels, radius)
    result = np.zeros_like(levels)
    for dy in range(-radius, radius + 1):
        reach = int((radius**2 - dy**2) ** 0.5)
        rows = padded[radius + dy : radius + dy + height]
        for dx in range(-reach, reach + 1):
            np.maximum(result, rows[:, radius + dx : radius + dx + width], out=result)
    return result


def label_pieces(mask: np.ndarray, by_corners: bool = True) -> np.ndarray:
    """A number above 0 for each piece of a mask (h, w) that is connected by edges or, as usual, corners; 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1, dtype=np.int32).reshape(mask.shape), 0)
    while (
        True
    ):  # each pixel takes the highest label around it, and the label of the pixel that this one is named after
        padded = np.pad(labels, 1)
        rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
        columns = rows if by_corners else padded[1:-1]
        highest = np.maximum(np.maximum(columns[:, :-2], rows[:, 1:-1]), columns[:, 2:]) * mask
        highest = np.concatenate([[0], highest.ravel()])[highest]
        if np.array_equal(highest, labels):
            return labels
        labels = highest


def count_pieces(mask: np.ndarray) -> int:
    """How many connected pieces a mask (h, w) has, corners included."""
    return len(np.unique(label_pieces(mask)[mask]))


def count_holes(mask: np.ndarray) -> int:
    """How many pieces of paper a mask (h, w) encloses, as a 0 does one; ink that meets at a corner is closed."""
    paper = ~np.pad(mask, 1)
    return len(np.unique(label_pieces(paper, by_corners=False)[paper])) - 1
