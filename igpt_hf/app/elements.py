"""Pieces of the page: images, bars, downloads and messages, as HTML. Plain functions, without Gradio."""

import base64
import html
import io
import math

import numpy as np
from PIL import Image

from ..plots import ImageGrid
from .animation import growing_gif


SHEET_SCALE = 8  # pixels of a downloaded PNG for each pixel of an image


def to_uri(data: bytes, kind: str) -> str:
    """The bytes of a file of an image kind ("png", "gif") as a data: address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def data_uri(image: Image.Image) -> str:
    """An image as a data: address, a PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return to_uri(buffer.getvalue(), "png")


def figure(image: Image.Image, caption: str, alt: str, given: Image.Image | None = None, patch_size: int = 1) -> str:
    """An image with its caption, which is HTML; with `given` (transparent where nothing is given) the rest grows over
    it, a row of blocks of `patch_size` at a time.
    """
    motion = behind = ""
    if given is not None:
        known = (np.asarray(given)[..., -1] > 0).all(axis=1)
        rows = int(known.argmin())  # known from the top on
        steps = (image.height - rows) // patch_size
        hidden = 100 * (1 - rows / image.height)
        motion = f' class="grow" style="--hidden: {hidden:.1f}%; animation-timing-function: steps({steps})"'
        behind = f' style="background-image: url({data_uri(given)})"'
    element = f'<img src="{data_uri(image)}" alt="{html.escape(alt)}"{motion}>'
    return f'<figure><div class="frame"{behind}>{element}</div><figcaption>{caption}</figcaption></figure>'


def columns_for(num: int) -> int:
    """How many images stand side by side in a grid."""
    return 4 if num in (7, 8) else math.ceil(math.sqrt(num))


def grid(figures: list[str], columns: int) -> str:
    """Figures in rows."""
    return f'<div class="images" style="--columns: {columns}">{"".join(figures)}</div>'


def say(text: str) -> str:
    """A sentence above an answer, which screen readers read out (page.js)."""
    return f'<p class="answer" data-say>{text}</p>'


def waiting(text: str) -> str:
    return f'<div class="waiting" data-say>{text}</div>'


def refusal(text: str) -> str:
    return f'<p class="refusal" role="alert">{html.escape(text)}</p>' if text else ""


def percent(share: float) -> str:
    """A probability in words, as HTML; an image is never certain."""
    if share > 0.999:
        return "&gt;99.9%"
    return "&lt;0.1%" if share < 0.001 else f"{100 * share:.1f}%"


def bars(names: list[str], shares: list[float]) -> str:
    """A bar for each class, the longest in another color."""
    lines = []
    for name, share in zip(names, shares, strict=True):
        best = " best" * (share == max(shares))
        lines.append(
            f'<div class="name">{html.escape(name)}</div><div class="track"><div class="bar{best}" '
            f'style="width: {100 * share:.1f}%"></div></div><div class="share">{percent(share)}</div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def downloads(pixels: np.ndarray, processor, name: str, given: np.ndarray | None = None, link: str = "") -> str:
    """Links to a PNG of images (n, height, width) of 0/1, to a GIF in which they grow, and to the page as it is.

    Args:
        name: Of the files, without a suffix.
        given: What the GIF shows from the beginning, booleans (height, width).
        link: The query of an address of this page that shows the same.
    """
    columns = columns_for(len(pixels))
    images = [Image.fromarray(one.astype(np.uint8) * 255) for one in pixels]
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    files = {
        "png": ("PNG", data_uri(ImageGrid(rows, scale=SHEET_SCALE).image())),
        "gif": ("growing GIF", to_uri(growing_gif(pixels, processor, columns, given), "gif")),
    }
    links = [
        f'<a download="{html.escape(name)}.{kind}" href="{uri}">{text}</a>' for kind, (text, uri) in files.items()
    ]
    if link:
        links.append(f'· <a class="permalink" href="?{html.escape(link)}">Link to these images</a>')
    return f'<p class="links">Download: {" ".join(links)}</p>'


def scale(nats: float, quantiles: list[float]) -> str:
    """Where an image is on the scale of the validation images' nats."""
    end = 1.4 * quantiles[100]
    low, high, place = (100 * min(value / end, 1) for value in (quantiles[1], quantiles[99], nats))
    words = f"{nats:.0f} nats, whatever the class; 98% of the validation images have "
    words += f"{quantiles[1]:.0f} to {quantiles[99]:.0f}"
    return (
        f'<div class="scale" role="img" aria-label="{words}"><div class="usual" style="left: {low:.1f}%; '
        f'width: {high - low:.1f}%"></div><div class="mark" style="left: {place:.1f}%"></div></div>'
        f'<p class="note">{words} (the shaded part).</p>'
    )
