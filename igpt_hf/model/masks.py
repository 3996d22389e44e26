"""Masks of images: which pixels are unknown, and what that says about each token.

A mask is boolean, or an image: true (white) is a pixel that is unknown and to be filled in, as in diffusers'
inpainting pipelines. Of a token, the bits of its block's known pixels are known.
"""

import numpy as np
import torch
from PIL import Image, ImageOps

from .image_reading import as_list
from .tokens import pixels_to_tokens


def read_masks(masks) -> list[np.ndarray]:
    """One mask or many -> boolean arrays (h, w), true where a pixel is unknown.

    Args:
        masks: (h, w) or (n, h, w), booleans; a PIL image, white from gray level 128 on, or of zeros and ones; or a
            list of those.

    Raises:
        ValueError: Something else.
    """
    if isinstance(masks, torch.Tensor | np.ndarray):
        masks = [masks] if masks.ndim == 2 else list(masks)
    masks = [masks] if isinstance(masks, Image.Image) else masks
    if not isinstance(masks, list | tuple) or not masks:
        raise ValueError(f"a mask is a PIL image or a boolean array (h, w) or (n, h, w), got {type(masks).__name__}.")
    arrays = []
    for index, mask in enumerate(masks):
        if isinstance(mask, Image.Image):
            mask = ImageOps.exif_transpose(mask)
            if mask.has_transparency_data:  # what is transparent is not white
                mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask.convert("RGBA"))
            gray = np.asarray(mask.convert("L"))
            array = gray >= (128 if gray.max(initial=0) > 1 else 1)
        else:
            array = np.asarray(mask)
        if array.dtype != bool or array.ndim != 2:
            raise ValueError(
                f"mask {index} is {array.dtype} of shape {array.shape}: pass booleans (h, w), true where a pixel is "
                "unknown, or a PIL image."
            )
        arrays.append(array)
    return arrays


def known_bits(masks: list[np.ndarray], config) -> np.ndarray:
    """Masks of the size of the model's images -> the known bits of each token, (n, N), int64.

    Args:
        masks: From `read_masks`.
        config: Anything with `image_size` and `patch_size`.

    Raises:
        ValueError: A mask of another size.
    """
    side = config.image_size
    for index, mask in enumerate(masks):
        if mask.shape != (side, side):
            height, width = mask.shape
            raise ValueError(f"mask {index} has {width}x{height} pixels: the images have {side}x{side}.")
    return pixels_to_tokens(~np.stack(masks), config.patch_size).astype(np.int64)


def known_tokens(processor, images, masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and masks -> tokens without their unknown bits, and their known bits, (n, N) each, int64.

    Args:
        processor: An `IGPTImageProcessor`.
        images: Anything that its `to_gray` takes; one image is used for all masks.
        masks: As `read_masks` takes them; one mask is used for all images.

    Raises:
        ValueError: Lists of different lengths, a mask of another size than its image, or one without unknown pixels.
    """
    images, masks = as_list(images, processor.image_size), read_masks(masks)
    count = max(len(images), len(masks))
    if len(images) not in (1, count) or len(masks) not in (1, count):
        raise ValueError(f"{len(images)} images and {len(masks)} masks: give as many, or one of either.")
    decided = processor.decide(images)
    pairs = zip(images * (count // len(images)), masks * (count // len(masks)), strict=True)
    fitted = [decided.fit_mask(image, mask, index) for index, (image, mask) in enumerate(pairs)]
    for index, unknown in enumerate(fitted):
        if not unknown.any():
            raise ValueError(
                f"mask {index} has no unknown pixel: there is nothing to fill in. True (white) marks what is unknown."
            )
    bits = torch.from_numpy(known_bits(fitted, processor))
    tokens = decided.tokenize(images, np.random.default_rng(0))  # the same at each call
    return torch.from_numpy(tokens.astype(np.int64)) & bits, bits


def transparent_pixels(image: Image.Image) -> np.ndarray:
    """The mask of an image whose transparent pixels are unknown: those of less than half of full opacity, (h, w).

    Raises:
        ValueError: An image without transparency.
    """
    if not image.has_transparency_data:
        raise ValueError(f"the image (mode {image.mode}) has no transparent pixels: pass a mask of its size.")
    return np.asarray(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")) < 128


__all__ = ["known_bits", "read_masks", "transparent_pixels"]
