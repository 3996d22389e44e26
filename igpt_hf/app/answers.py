"""What the page answers: settings and drawings in, HTML out. Plain functions, without Gradio."""

import base64
import html
import io
import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageChops

from ..evaluation.surprise import surprise_maps
from ..model.image_decision import is_photograph


MAX_IMAGES, MAX_SEED, MAX_TEMPERATURE, MAX_GUIDANCE = 16, 2**32 - 1, 2.0, 5.0
MAX_CANVAS_BYTES = 500_000
MAX_CANVAS_SIDE = 2000
ANY = -1  # stands for no class


# --- requests -------------------------------------------------------------------------------------------------------


def class_choices(config) -> list[tuple[str, int]]:
    """(text, class index) of each class, and of any; a Persian digit stands before the name of a digit."""
    choices = []
    for label, name in sorted(config.id2label.items()):
        is_digit = name.isascii() and name.isdigit() and len(name) == 1
        choices.append((f"{chr(0x6F0 + int(name))}  {name}" if is_digit else name, label))
    return [*choices, ("any", ANY)]


def check_range(name: str, value, low: float, high: float, is_whole: bool = False):
    """Raises ValueError, in words, unless `value` is a number from `low` to `high`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (is_whole and value != int(value)):
        raise ValueError(f"{name} must be a {'whole ' * is_whole}number from {low} to {high}, not {value}.")


class Settings(NamedTuple):
    """The settings that sampling and completing share, in the order of their fields on the page.

    Attributes:
        label: Index of the class; `ANY` for any class.
        num: How many images.
        temperature, guidance: As `generate` takes them.
        seed: The same seed gives the same images.
    """

    label: int
    num: int
    temperature: float
    guidance: float
    seed: int

    def check(self, config):
        """Raise ValueError if a value is out of its range, whoever sent it."""
        check_range("The class", self.label, ANY, config.num_labels - 1, is_whole=True)
        check_range("The number of images", self.num, 1, MAX_IMAGES, is_whole=True)
        check_range("The temperature", self.temperature, 0.1, MAX_TEMPERATURE)
        check_range("Guidance", self.guidance, 0, MAX_GUIDANCE)
        check_range("The seed", self.seed, 0, MAX_SEED, is_whole=True)


def read_canvas(drawing: str | None) -> Image.Image:
    """What the drawing area sends, a PNG as a data: address -> a gray image.

    Raises:
        ValueError: There is nothing on it, or it is not such a PNG.
    """
    prefix = "data:image/png;base64,"
    if not drawing:
        raise ValueError("There is nothing here yet: draw something first.")
    if not isinstance(drawing, str) or not drawing.startswith(prefix) or len(drawing) > MAX_CANVAS_BYTES:
        raise ValueError(f"A drawing is a PNG as a data: address of at most {MAX_CANVAS_BYTES:,} characters.")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(drawing[len(prefix) :])), formats=["PNG"])
        if max(image.size) > MAX_CANVAS_SIDE:
            raise ValueError(f"A drawing has at most {MAX_CANVAS_SIDE} pixels a side.")
        gray = image.convert("L")
    except (OSError, SyntaxError) as error:  # PIL raises the second on broken PNG files
        raise ValueError("The drawing could not be read as a PNG.") from error
    low, high = gray.getextrema()
    if high - low < 64 or high <= 128:  # type: ignore[operator]  # PIL: or pairs, of several bands
        raise ValueError("There is nothing here yet: draw something first.")
    return gray


def center_ink(gray: Image.Image) -> Image.Image:
    """Move a drawing, white on dark, to the middle of the canvas, where the training data has its digits."""
    left, top, right, bottom = gray.point(lambda level: 255 * (level > 128)).getbbox()
    shift = (gray.width - left - right) // 2, (gray.height - top - bottom) // 2
    return ImageChops.offset(gray, *shift)  # the margin that wraps around is blank


def to_pixels(processor, gray: Image.Image) -> np.ndarray:
    """A gray image of any size -> binary pixels, white on black, (image_size, image_size).

    A photograph is cropped to its ink; a drawing shrinks as it is: a margin is for crops, and a canvas has its own.

    Raises:
        ValueError: No ink is left.
    """
    small = gray.resize((processor.image_size,) * 2, Image.Resampling.BOX)
    fitted = processor.fit_upload(gray if is_photograph(gray) else small)
    return processor.decode_pixels(processor.tokenize(fitted))[0]


# --- answers --------------------------------------------------------------------------------------------------------


def data_uri(image: Image.Image) -> str:
    """An image as a data: address, a PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure(image: Image.Image, caption: str, known_rows: int | None = None, patch_size: int = 1) -> str:
    """An image with its caption, as HTML; with `known_rows` it grows, a row of blocks at a time, below these."""
    motion = ""
    if known_rows is not None:
        steps = (image.height - known_rows) // patch_size
        hidden = 100 * (1 - known_rows / image.height)
        motion = f' class="grow" style="--hidden: {hidden:.1f}%; animation-timing-function: steps({steps})"'
    element = f'<img src="{data_uri(image)}" alt="{html.escape(caption)}"{motion}>'
    return f'<figure><div class="frame">{element}</div><figcaption>{caption}</figcaption></figure>'


def image_grid(figures: list[str]) -> str:
    columns = math.ceil(math.sqrt(len(figures)))
    template = f"repeat({columns}, minmax(0, {200 if columns > 1 else 380}px))"
    return f'<div class="images" style="grid-template-columns: {template}">{"".join(figures)}</div>'


def bar(name: str, share: float, is_best: bool) -> str:
    percent = f"{100 * share:.1f}%"
    filled = f'<div class="bar{" best" * is_best}" style="width: {percent}"></div>'
    return f"""<div class="name">{html.escape(name)}</div><div class="track">{filled}</div>
        <div class="share">{percent}</div>"""


def waiting(text: str) -> str:
    return f'<div class="waiting">{text}</div>'


def sample(
    model, processor, settings: Settings, pixels: np.ndarray | None = None, keep_rows: int | None = None
) -> list[str]:
    """Sample images, or what is below the kept rows of one -> a figure of each, with its nats given the class."""
    labels = None if settings.label == ANY else [int(settings.label)]
    prompt = processor.prompt(class_labels=labels, images=pixels, keep_rows=keep_rows)["input_ids"]
    torch.manual_seed(int(settings.seed))
    scales = {"temperature": float(settings.temperature), "guidance_scale": float(settings.guidance)}
    ids = model.generate(prompt.expand(int(settings.num), -1), **scales)
    images = zip(processor.decode(ids), (-model.log_likelihood(ids)).tolist(), strict=True)
    return [figure(image, f"{nats:.1f} nats", keep_rows or 0, processor.patch_size) for image, nats in images]


def generate(model, processor, *settings) -> str:
    """Sample images; `settings` are the values of `Settings`."""
    settings = Settings(*settings)
    settings.check(model.config)
    return image_grid(sample(model, processor, settings))


def complete(model, processor, drawing, keep_rows, *settings) -> str:
    """Keep the upper rows of a drawing or an upload, and sample the rest; `settings` are the values of `Settings`."""
    settings = Settings(*settings)
    settings.check(model.config)
    check_range("The number of rows", keep_rows, processor.patch_size, processor.image_size - processor.patch_size)
    pixels, rows = to_pixels(processor, read_canvas(drawing)), int(keep_rows)
    if not pixels[:rows].any():
        raise ValueError(f"The upper {rows} rows are empty: draw there, or keep more of them.")
    given = Image.fromarray(pixels * 255).convert("LA")
    is_given = np.indices(pixels.shape)[0] < rows
    given.putalpha(Image.fromarray(is_given.astype(np.uint8) * 255))  # what is not given is transparent
    samples = sample(model, processor, settings, pixels, rows)
    return image_grid([figure(given, f"given: {rows} rows"), *samples])


def read(model, processor, drawing) -> str:
    """The class of a drawing, by Bayes' rule, and how surprising each of its pixels is."""
    ids = processor(to_pixels(processor, center_ink(read_canvas(drawing))))["input_ids"]
    posterior = model.class_posterior(ids)[0]
    best = posterior.argmax().item()
    ids[:, 0] = model.config.vocab_size + best
    surprise = surprise_maps(model, ids)["pixels"][0]
    names = {label: text for text, label in class_choices(model.config)}
    bars = "".join(bar(names[label], share, label == best) for label, share in enumerate(posterior.tolist()))
    heat = Image.fromarray((colormaps["magma"](surprise / max(surprise.max(), 1))[..., :3] * 255).astype(np.uint8))
    seen = figure(processor.decode(ids)[0], "what the model sees")
    surprised = figure(heat, f"its surprise: {surprise.sum():.1f} nats, up to {surprise.max():.1f} in one pixel")
    return (
        f'<p class="answer">It reads <b>{html.escape(names[best])}</b>.</p><div class="bars">{bars}</div>'
        f"{image_grid([seen, surprised])}"
    )
