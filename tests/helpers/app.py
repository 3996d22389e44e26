"""What the tests of the app share: drawings to give it, and the images in its answers."""

import base64
import io
import re

import numpy as np
from PIL import Image

from igpt_hf.data.synthetic import draw_digit


SIDE = 280  # of the drawing area, in pixels


def digit(label: int = 7, seed: int | None = None) -> Image.Image:
    """A drawn digit, as large as the drawing area."""
    image = Image.fromarray(draw_digit(label, np.random.default_rng(label if seed is None else seed)))
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def placed(image: Image.Image, size: float, corner: tuple[int, int] = (0, 0)) -> Image.Image:
    """A drawing at a fraction of its size, its upper left corner elsewhere."""
    side = round(SIDE * size)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(image.resize((side, side), Image.Resampling.BICUBIC), corner)
    return canvas


def images_in(html: str) -> list[np.ndarray]:
    """The images that an answer shows."""
    codes = re.findall(r"<img src=\"data:image/png;base64,([^\"]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in codes]


def hide(image: Image.Image, hidden: np.ndarray) -> Image.Image:
    """A drawing whose hidden part, booleans of its size, is transparent."""
    image = image.convert("LA")
    image.putalpha(Image.fromarray((~hidden).astype(np.uint8) * 255))
    return image
