"""Lossless codecs on the same images, beside which a likelihood can be held."""

import io
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm


CODECS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "optimize": True},
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 5},
    "group4_tiff": {"format": "TIFF", "compression": "group4"},
}


SHEET_ROWS = 14_000  # of pixels in one file, 500 images of 28 rows; WebP allows 16,383


def codec_bits(pixels: np.ndarray) -> dict[str, dict[str, float]]:
    """Measure lossless codecs on the same images, in bits per image.

    Args:
        pixels: (n, height, width) of 0/1.

    Returns:
        Per codec `alone`, one file per image, headers included, and `in_sheets`, the images stacked in files of up to
        14,000 rows, where the header weighs nothing and the codec can learn from the images above.
    """
    num, height, width = pixels.shape
    count = max(1, SHEET_ROWS // height)
    sheets = [pixels[i : i + count].reshape(-1, width) for i in range(0, num, count)]
    bits = {}
    for codec in tqdm(CODECS, desc="Codecs", delay=2, disable=None):
        alone, in_sheets = codec_sizes(pixels, codec).sum(), codec_sizes(sheets, codec).sum()
        bits[codec] = {"alone": 8 * alone / num, "in_sheets": 8 * in_sheets / num}
    return bits


def codec_sizes(images, codec: str) -> np.ndarray:
    """Bytes of each of n black and white images, (height, width) of 0/1, in a file of its own: (n,)."""
    sizes = []
    for pixels in images:
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(bool)).save(buffer, **CODECS[codec])  # mode "1"
        sizes.append(len(buffer.getvalue()))
    return np.array(sizes)
