"""What a whole data set is: where its ink is, and between which levels. Decided once, over all images together."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from .image_ink import count_holes, count_pieces, has_dark_strokes, otsu_level
from .image_reading import GrayImage, edges_of


FULL_RANGE = (0.0, 255.0)
HALF = 128  # the level that separates dark from light, where it separates the data's
INKS = ("auto", "dark", "light", "opacity")
# An image of at least this side, of which no level fills this fraction, has no even background: it is a photograph.
PHOTOGRAPH_SIDE, PHOTOGRAPH = 64, 0.5
SAME = 0.9  # two ways to binarize a photograph that agree less (intersection over union) differ
MANY = 0.1  # of the images, or of the ink


class Evidence(NamedTuple):
    """What one image says: fractions of its pixels, by level (256,)."""

    side: int  # the longer one, in pixels
    levels: np.ndarray  # of the visible pixels
    border: np.ndarray  # of the visible pixels at the four edges
    opacity: np.ndarray | None = None  # None: it has no transparent pixel
    clear_border: float = 0.0  # fraction of the pixels at the edges that are transparent
    is_white: bool = False  # known to be light on dark
    is_mask: bool = False  # zeros and ones only
    has_dark_strokes: bool | None = None  # None: it is not a photograph


def examine(image: GrayImage) -> Evidence:
    """Count the levels of an image."""
    gray, side = np.asarray(image.gray), max(image.gray.size)
    if image.opacity is None:
        dark = has_dark_strokes(image.gray) if is_photograph(image.gray) else None
        levels, border = _fractions(gray), _fractions(edges_of(gray))
        return Evidence(side, levels, border, is_white=image.is_white, is_mask=image.is_mask, has_dark_strokes=dark)
    opacity = np.asarray(image.opacity)
    is_seen, is_seen_edge = opacity >= HALF, edges_of(opacity) >= HALF
    levels, border = _fractions(gray[is_seen]), _fractions(edges_of(gray)[is_seen_edge])
    return Evidence(side, levels, border, _fractions(opacity), 1 - float(is_seen_edge.mean()), image.is_white)


def is_photograph(gray: Image.Image) -> bool:
    """Whether an image has no even background, as photographs never have, and drawings and scans do."""
    return max(gray.size) >= PHOTOGRAPH_SIDE and bool(_fractions(np.asarray(gray)).max() < PHOTOGRAPH)


def _fractions(levels: np.ndarray) -> np.ndarray:
    """Fraction of each of the 256 levels; Pillow counts bytes, where np.bincount would first copy them to int64."""
    if levels.size == 0:
        return np.zeros(256)
    return np.array(Image.fromarray(levels.reshape(1, -1)).histogram()) / levels.size


class Survey:
    """The evidence of many images; those whose polarity is known say nothing while there are others."""

    def __init__(self, images: Iterable[GrayImage]):
        every = [examine(image) for image in images]
        self.sides = [one.side for one in every]
        self.evidence = [one for one in every if not one.is_white] or every

    def find_ink(self) -> str:
        """ "dark", "light" or "opacity": which part of the images is ink.

        Opacity, where most of the borders are transparent. Else the borders are paper, and where as much of them is
        dark as is light, the rarer of both is ink. Photographs, whose borders may lie in a shadow, tell by their
        strokes.
        """
        evidence = self.evidence
        if all(one.is_white or one.is_mask for one in evidence):
            return "light"
        if np.mean([one.clear_border for one in evidence]) > 0.5:
            return "opacity"
        level = self._level(self._pooled("light"))
        votes = [
            one.border[level:].sum() if one.has_dark_strokes is None else float(one.has_dark_strokes)
            for one in evidence
            if one.border.any()
        ]
        light = np.mean(votes)
        if abs(light - 0.5) < 0.01:
            light = np.mean([one.levels[level:].sum() for one in evidence])
        return "dark" if light > 0.5 else "light"

    def find_levels(self, ink: str, only_pairs: bool = False) -> tuple[float, float]:
        """The levels that stand for paper and ink, in either order; half-way between them is the threshold.

        Where two levels are all there is, these. Else 0 and 255 if half-way between them separates paper from ink (or
        with `only_pairs`), else levels around Otsu's.
        """
        fractions = self._pooled(ink)
        used = np.flatnonzero(fractions)
        if len(used) == 2:
            return float(used[0]), float(used[1])
        level = self._level(fractions)
        if level == HALF or len(used) < 2 or only_pairs:
            return FULL_RANGE
        middle = level - 0.5  # of the levels, whole numbers, that it separates
        reach = max(min(middle - used[0], used[-1] - middle), 1.0)
        return float(middle - reach), float(middle + reach)

    def _pooled(self, ink: str) -> np.ndarray:
        with_opacity = [one.opacity for one in self.evidence if ink == "opacity" and one.opacity is not None]
        return np.mean(with_opacity or [one.levels for one in self.evidence], axis=0)

    @staticmethod
    def _level(fractions: np.ndarray) -> int:
        """The level that separates dark from light: half, unless Otsu's moves over half of the rarer of both."""
        level = otsu_level(fractions)
        between = fractions[min(level, HALF) : max(level, HALF)].sum()
        rarer = min(fractions[:level].sum(), fractions[level:].sum())
        return HALF if between <= 0.5 * rarer else level


# --- decisions that need the images, fitted in one way and the other ------------------------------------------------


def decide_shrinking(processor, images: list[GrayImage]):
    """Decide whether light is evened out and strokes are widened, by images that shrink: an `IGPTImageProcessor`."""
    decided = processor
    if processor.threshold == "auto":
        decided = processor.replace(threshold=0.5)
        local = processor.replace(threshold="local", levels=FULL_RANGE)  # which the paper's brightness replaces
        photographs = [one for one in images if not one.is_white and one.opacity is None and is_photograph(one.gray)]
        differ = [_differ(decided.fit_binary(image), local.fit_binary(image)) for image in photographs]
        decided = local if sum(differ) > MANY * len(images) else decided
    if processor.widen_strokes is None:
        plain, wide = (
            [decided.replace(widen_strokes=widen).fit_binary(image) for image in images] for widen in (False, True)
        )
        is_broken = [_is_broken(a, b) for a, b in zip(plain, wide, strict=True)]
        loses_ink = sum(a.sum() for a in plain) < (1 - MANY) * sum(b.sum() for b in wide)
        decided = decided.replace(widen_strokes=bool(loses_ink or sum(is_broken) > MANY * len(images)))
    return decided


def _is_broken(plain: np.ndarray, wide: np.ndarray) -> bool:
    """Whether ink that is not widened is in more pieces, or a ring of it open."""
    return count_pieces(plain) > count_pieces(wide) or count_holes(plain) < count_holes(wide)


def usual_margin(processor, images: list[GrayImage]) -> int:
    """How many pixels are usually free between the ink and the nearest edge."""
    boxes = [Image.fromarray(processor.fit_binary(image)).getbbox() for image in images]
    size = processor.image_size
    free = [min(left, top, size - right, size - bottom) for left, top, right, bottom in filter(None, boxes)]
    return int(np.median(free)) if free else processor.margin


def spread(rows: Sequence[int], count: int) -> list[int]:
    """At most `count` of `rows`, evenly spaced."""
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(int)]


def _differ(pixels: np.ndarray, local: np.ndarray) -> bool:
    """Whether one level makes other ink of a photograph than a local threshold, or more pieces."""
    return _iou(pixels, local) < SAME or 0 < count_pieces(local) < count_pieces(pixels)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
