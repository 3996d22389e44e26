"""One image that somebody gives a trained model, which may look unlike its data: a photograph, another polarity.

`processor` is an `IGPTImageProcessor`, whose methods of the same names say what these functions do.
"""

import numpy as np
from PIL import Image, ImageFilter

from .image_decision import FULL_RANGE, is_photograph
from .image_reading import GrayImage, as_list, edges_of, read_image, to_marked_image
from .masks import read_masks


NOTHING_LEFT = "nothing is left of the image once it is binary: give one whose ink contrasts more with its background."


def is_like_data(processor, image) -> bool:
    """Whether one image is read well by what was decided for the data."""
    image = _only(processor, image)
    read, decided = read_image(image, 0), processor.decide([image])
    if read.is_white:
        return True
    low, high = read.gray.getextrema()
    is_even = low == high and read.opacity is None  # a sheet without a stroke has no ink to be found
    return (is_even or bool(decided.fit_binary(read).any())) and not _border_is_ink(decided, read)


def like_data(processor, image):
    """The image itself, where it is like the data; else that of `fit_upload`."""
    return image if is_like_data(processor, image) else fit_upload(processor, image)


def binarize_upload(processor, image, mask):
    """Binarize one image of which a part is unknown, unless it is like the data."""
    image, masks = _only(processor, image), read_masks(mask)
    read = read_image(image, 0)
    if read.is_white or {mask.shape for mask in masks} != {(read.gray.height, read.gray.width)}:  # `prompt` refuses
        return image
    mask = np.logical_or.reduce(masks)
    is_cut_out = read.opacity is not None and bool((mask | (np.asarray(read.opacity) >= 128)).all())
    seen = image
    if (read.opacity is None or is_cut_out) and not mask.all():
        gray = np.array(read.gray)
        gray[mask] = np.bincount(gray[~mask]).argmax()  # what is unknown looks like paper: it says nothing of the ink
        seen = Image.fromarray(gray)
    if is_like_data(processor, seen):
        return seen if is_cut_out else image
    decided = by_itself(processor).decide([seen])
    ink = decided.read(seen).resize(read.gray.size, Image.Resampling.BILINEAR)  # the mask's
    return to_marked_image((np.asarray(ink) >= decided.level * 255).astype(np.uint8) * 255)


def _only(processor, image):
    """The one image that was given."""
    images = as_list(image, processor.image_size)
    if len(images) != 1:
        raise ValueError(f"give one image at a time, not {len(images)}.")
    return images[0]


def by_itself(processor):
    """A processor that decides anew, over one image alone."""
    return processor.replace(ink="auto", invert="auto", threshold="auto", levels=None, widen_strokes=None)


def fit_upload(processor, image) -> Image.Image:
    """Fit one image, whatever it looks like."""
    image = _only(processor, image)
    read = read_image(image, 0)
    if not read.is_white and read.opacity is None and is_photograph(read.gray):
        pixels = _fit_photograph(by_itself(processor).decide([image]), read)
    else:
        decided = processor.replace(widen_strokes=None).decide([image])
        pixels = decided.fit_binary(read)
        if not read.is_white and (not pixels.any() or _border_is_ink(decided, read)):
            pixels = by_itself(processor).decide([image]).fit_binary(read)
    low, high = read.gray.getextrema()
    if not pixels.any() or (low == high and read.opacity is None and not read.is_white):  # an empty sheet is no square
        raise ValueError(NOTHING_LEFT)
    return to_marked_image(pixels.astype(np.uint8) * 255)


def _border_is_ink(processor, read: GrayImage) -> bool:
    """Whether most of the image's outermost pixels are ink, before it is fitted and gets a margin."""
    ink = np.asarray(processor.to_ink(read)) >= processor.level * 255
    return edges_of(ink).mean() > 0.5


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
