"""Fit a drawing of any size, place and pen to the images that a model was trained on.

The model's own samples tell how large these are, class by class, and how wide their strokes. A drawing is tried as
large as they usually are and, since some classes are small (the Persian zero), at the size that it has by the width of
its strokes; if its pen was thin, which says little, also as large as it was drawn. Thin strokes are made as wide as
those of the samples. The smaller sizes count for classes that have them, and only if the image surprises the model
clearly less.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..evaluation.typicality import marginal_nats
from ..model.image_ink import dilate


SAMPLES = 256  # in all, but at least two of each class
MARGIN = 1.5  # standard deviations of the samples' nats: by so much less must a smaller size surprise
SUBPIXELS = 8  # strokes are widened on a grid of so many pixels to one of the model
THIN = 0.9  # of the samples' stroke width
RECOGNIZABLE = 0.9  # `min_posterior` of these samples


class Reference(NamedTuple):
    """What the model's own samples are like.

    Attributes:
        stroke_width: Median, in pixels.
        size: Median of the longer side of the ink's bounding box, in pixels.
        sizes: The shortest and the longest of these in each class, (num_labels, 2).
        nats: Mean given the class, (num_labels,); and their standard deviation around it.
        peaks: 99th percentile of `peaks`.
    """

    stroke_width: float
    size: float
    sizes: np.ndarray
    nats: torch.Tensor
    deviation: float
    peaks: float


class Reading(NamedTuple):
    """What a model makes of a drawing.

    Attributes:
        ids: The drawing as the model sees it, with the likeliest class as its prompt, (1, 1 + N).
        posterior: Of each class, (num_labels,).
        nats: Of the image, the class unknown.
        likeness: "stranger" or "simpler" than all validation images, "strange" or "simple" beside 99 of 100 of them,
            or "typical"; None where the model has no `nats_quantiles`.
    """

    ids: torch.Tensor
    posterior: torch.Tensor
    nats: float
    likeness: str | None


def peaks(model, ids: torch.Tensor) -> torch.Tensor:
    """Sum of the squared nats of the tokens given their prompts, (n,): large where a few tokens are very unlikely."""
    return model.token_log_likelihoods(ids).detach().square().sum(1)


def stroke_width(mask: np.ndarray) -> float:
    """Mean width of the strokes of a mask (h, w), in pixels: twice the area by the perimeter.

    The perimeter is pi/4 times the number of sides between ink and paper, right on average over all directions.
    """
    padded = np.pad(mask, 1)
    sides = (padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum()
    return 2 * mask.sum() / (np.pi / 4 * sides)


def crop(mask: np.ndarray) -> np.ndarray:
    """The bounding box of what is true in a mask (h, w), which is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def make_reference(model, processor) -> Reference:
    """Sample images of each class and measure them; the same ones each time."""
    num_labels = model.config.num_labels
    per_class = max(2, SAMPLES // num_labels)
    labels = np.repeat(np.arange(num_labels), per_class)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = model.generate(**processor.prompt(class_labels=labels), min_posterior=RECOGNIZABLE)
    crops = [crop(pixels > 0) if pixels.any() else np.ones((1, 1), bool) for pixels in processor.decode_pixels(ids)]
    sizes = np.array([max(one.shape) for one in crops])
    by_class = sizes.reshape(num_labels, per_class)
    nats = -model.log_likelihood(ids).view(num_labels, per_class)
    return Reference(
        stroke_width=float(np.median([stroke_width(one) for one in crops])),
        size=float(np.median(sizes)),
        sizes=np.stack([by_class.min(1) - 1, by_class.max(1) + 1], axis=1),
        nats=nats.mean(1),
        deviation=max(nats.std(1).square().mean().sqrt().item(), 1e-6),
        peaks=float(np.percentile(peaks(model, ids).numpy(), 99)),
    )


def place(drawn: np.ndarray, size: float, width: float, image_size: int) -> np.ndarray:
    """Draw a cropped mask anew: (h, w) -> (image_size, image_size), booleans, in the middle.

    Args:
        size: Of the longer side of the bounding box, in pixels.
        width: Of the strokes, at least, in pixels.
    """
    longest, thickness = max(drawn.shape), stroke_width(drawn)
    scale = max(size - width, 1) / max(longest - thickness, 1)  # of the strokes' middle lines
    grown = max(0.0, (width - thickness * scale) / 2)
    scale = max(size - 2 * grown, 1) / longest
    height, length = (max(1, round(side * scale * SUBPIXELS)) for side in drawn.shape)
    fine = Image.fromarray(drawn.astype(np.uint8) * 255).resize((length, height), Image.Resampling.BILINEAR)
    radius = round(grown * SUBPIXELS)
    wide = Image.fromarray(dilate(np.pad(np.asarray(fine) >= 128, radius), radius).astype(np.uint8) * 255)
    side = image_size * SUBPIXELS
    sheet = Image.new("L", (side, side))
    sheet.paste(wide, ((side - wide.width) // 2, (side - wide.height) // 2))
    return np.asarray(sheet.resize((image_size, image_size), Image.Resampling.BOX)) >= 128


def read_drawing(model, processor, reference: Reference, mask: np.ndarray) -> Reading:
    """Read a drawing: ink (h, w) of any size, booleans, not empty."""
    ids, scores = fit_drawing(model, processor, reference, mask)
    ids[:, 0] = model.config.vocab_size + scores.argmax(1)
    nats = marginal_nats({"classes": scores}).item()
    quantiles = model.config.nats_quantiles
    likeness = None
    if quantiles is not None:
        is_peaked = peaks(model, ids).item() > reference.peaks
        likeness = likeness_of(nats, quantiles, is_peaked)
    return Reading(ids, scores[0].softmax(0), nats, likeness)


def likeness_of(nats: float, quantiles: list[float], is_peaked: bool) -> str:
    """The `likeness` of a `Reading`; an image is strange, too, if a few of its tokens are very unlikely."""
    if nats > quantiles[100]:
        return "stranger"
    if nats < quantiles[0]:
        return "simpler"
    if nats > quantiles[99] or is_peaked:
        return "strange"
    return "simple" if nats < quantiles[1] else "typical"


def fit_drawing(model, processor, reference: Reference, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a drawing as the model's images are: ink (h, w) of any size -> ids (1, 1 + N), with the start token.

    And its `class_log_likelihoods`, (1, num_labels).
    """
    drawn, size, width = crop(mask), reference.size, reference.stroke_width
    longest, thickness = max(drawn.shape), stroke_width(drawn)
    smaller = [longest * width / thickness]
    if thickness * size / longest < THIN * width:
        smaller.append(processor.image_size * longest / max(mask.shape))
    sizes = [size, *(min(max(one, reference.sizes.min() + 2), size) for one in smaller)]
    ids = processor(np.stack([place(drawn, one, width, processor.image_size) for one in sizes]))["input_ids"]
    scores = model.class_log_likelihoods(ids)  # (sizes, num_labels)
    excess = -scores - reference.nats
    low, high = torch.from_numpy(reference.sizes).T[:, None]  # (1, num_labels) each
    tried = torch.tensor(sizes)[:, None]
    has_size = (low <= tried) & (tried <= high)
    has_size[0] = True
    least = excess.masked_fill(~has_size, torch.inf).amin(1)
    least[1:] += MARGIN * reference.deviation
    best = int(least.argmin())
    return ids[best : best + 1], scores[best : best + 1]
