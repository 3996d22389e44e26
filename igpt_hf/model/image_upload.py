"""One image that somebody gives a trained model, which may look unlike its data: a photograph, another polarity."""

import numpy as np
from PIL import Image, ImageFilter

from .image_decision import FULL_RANGE, is_photograph
from .image_reading import GrayImage, as_list, read_image, to_marked_image


NOTHING_LEFT = "nothing is left of the image once it is binary: give one whose ink contrasts more with its background."


def fit_upload(processor, image) -> Image.Image:
    """Fit one image: `IGPTImageProcessor.fit_upload`."""
    images = as_list(image, processor.image_size)
    if len(images) != 1:
        raise ValueError(f"give one image at a time, not {len(images)}.")
    read = read_image(images[0], 0)
    by_itself = processor.replace(ink="auto", invert="auto", threshold="auto", levels=None, widen_strokes=None)
    if not read.is_white and read.opacity is None and is_photograph(read.gray):
        pixels = _fit_photograph(by_itself.decide(images), read)
    else:
        decided = processor.replace(widen_strokes=None).decide(images)
        pixels = decided.fit_binary(read)
        if not read.is_white and (not pixels.any() or _border_is_ink(decided, read)):
            pixels = by_itself.decide(images).fit_binary(read)
    low, high = read.gray.getextrema()
    if not pixels.any() or (low == high and read.opacity is None and not read.is_white):  # an empty sheet is no square
        raise ValueError(NOTHING_LEFT)
    return to_marked_image(pixels.astype(np.uint8) * 255)


def _border_is_ink(processor, read: GrayImage) -> bool:
    """Whether most of the image's outermost pixels are ink, before it is fitted and gets a margin."""
    ink = np.asarray(processor.to_ink(read)) >= processor.level * 255
    return np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).mean() > 0.5


def _fit_photograph(processor, read: GrayImage) -> np.ndarray:
    """Crop to the ink, and leave the margin of the data around it."""
    ink = processor.to_ink(read)
    mask = ink.point([255 * (level >= 128) for level in range(256)])
    box = mask.filter(ImageFilter.MedianFilter(3)).getbbox()  # of no lone specks
    if box is None:
        raise ValueError(NOTHING_LEFT)
    left, top, *_ = box
    x0, y0, x1, y1 = mask.crop(box).getbbox() or (0, 0, *mask.crop(box).size)
    crop = to_marked_image(np.asarray(ink.crop((left + x0, top + y0, left + x1, top + y1))))
    margin = processor.margin if processor.ink_margin is None else processor.ink_margin
    tight = processor.replace(ink="light", threshold=0.5, levels=FULL_RANGE, widen_strokes=None, margin=margin)
    return tight.decide([crop]).fit_binary(read_image(crop, 0))
