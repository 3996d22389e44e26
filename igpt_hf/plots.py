"""Figures: grids of images, completions, curves. matplotlib is imported where it is needed."""

import contextlib
import logging
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


BLUE, RED, GRAY = "#3b6ea5", "#c44e52", "#8c8c8c"
FONT = "DejaVu Sans"  # comes with matplotlib; Latin, Greek, Cyrillic, Arabic, Hebrew
LONGEST = 20  # characters of a name that are shown
VECTOR_FORMATS = ("pdf", "svg")
DPI = 100  # of a grid, whose screen pixels are whole
CELL, MAX_SIDE, TEXT = (
    84,
    3000,
    20,
)  # screen pixels: about the side of an image, at most a grid's, a text line
PAPER, FRAME = 255, 176  # gray levels


# --- text -----------------------------------------------------------------------------------------------------------


@cache
def font_of(text: str) -> str | None:
    """Family of an installed font that has all characters of a text, first of all matplotlib's own; None: no font."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    needed = {ord(character) for character in text if unicodedata.category(character) not in ("Cf", "Zs")}
    regular = [font for font in fontManager.ttflist if (font.style, font.weight) == ("normal", 400)]
    for font in sorted(regular, key=lambda font: font.name != FONT):
        # The last resort is a font whose every character is a box.
        if not font.name.startswith("Last Resort") and needed <= FT2Font(font.fname).get_charmap().keys():
            return font.name
    return None


def shown_names(names: Iterable[str], longest: int = LONGEST) -> list[str]:
    """Names of classes as figures show them: long ones cut, and the number of a class whose script no font has."""
    lines = [" ".join(name.split()) for name in names]
    cut = [line if len(line) <= longest else f"{line[: longest - 1].rstrip()}…" for line in lines]
    return [str(number) if font_of(name) is None else name for number, name in enumerate(cut)]


@contextlib.contextmanager
def figure_style(names: Iterable[str] = ()):
    """Fonts and sizes of all figures that are made within; matplotlib shapes and orders the letters of `names`."""
    from matplotlib import rc_context

    families = [FONT, *sorted({font_of(name) or FONT for name in names} - {FONT})]
    style: dict[Any, Any] = {"font.family": families, "font.size": 12, "axes.titlesize": 14, "text.parse_math": False}
    with rc_context(style | {"axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.3}):
        yield


def save_figure(figure, path: str | Path, form: str = "png"):
    """Write a figure and, where `form` is pdf or svg, the same beside it."""
    from matplotlib import rc_context

    with rc_context({"pdf.fonttype": 42}):  # TrueType: journals refuse matplotlib's default
        for name in _paths(path, form):
            figure.savefig(name)


def _paths(path: str | Path, form: str) -> list[Path]:
    """The files of a figure: itself and, of a vector format, that beside it."""
    beside = [Path(path).with_suffix(f".{form}")] if form in VECTOR_FORMATS else []
    return list(dict.fromkeys([Path(path), *beside]))


# --- grids of images ------------------------------------------------------------------------------------------------


@dataclass
class ImageGrid:
    """Images of one size in rows; many rows stand in several blocks beside each other. A notebook shows it.

    Args:
        rows: Square images of one size.
        names: Before each row.
        title: Above all.
        headers: Words above columns, by the column.
        scale: Screen pixels per pixel; None: about 84 screen pixels an image.
        blocks: How many blocks; None: so many that all is about 3 to 2.

    Raises:
        ValueError: No image at all.
    """

    rows: Sequence[Sequence[Image.Image]]
    names: Sequence[str] | None = None
    title: str | None = None
    headers: Mapping[int, str] = field(default_factory=dict)
    scale: int | None = None
    blocks: int | None = None

    def __post_init__(self):
        if not self.rows or not self.rows[0]:
            raise ValueError("a grid needs at least one image.")
        self.columns, side = max(len(row) for row in self.rows), self.rows[0][0].width
        num_blocks = self.blocks or max(1, round(math.sqrt(1.5 * len(self.rows) / (self.columns + 1))))
        self.block_rows = math.ceil(len(self.rows) / num_blocks)
        self.num_blocks = math.ceil(len(self.rows) / self.block_rows)
        if self.scale is None:
            fitting = MAX_SIDE // (max(self.block_rows, self.num_blocks * (self.columns + 1)) * side)
            self.scale = max(1, min(round(CELL / side), fitting))
        self.side = side * self.scale
        self.gap = max(2, self.side // 16)

    def figure(self):
        """The grid as a matplotlib Figure, in whose axes a unit is a screen pixel."""
        from matplotlib.figure import Figure

        names, step = self.names, self.side + self.gap
        with figure_style([*(names or ()), *self.headers.values(), self.title or ""]):
            size = min(TEXT, 0.8 * step) * 72 / DPI  # points
            margin = 0 if names is None else _text_width(names, size) + TEXT
            top = TEXT * 2 * (self.title is not None) + TEXT * 3 // 2 * bool(self.headers)
            block = margin + self.gap + self.columns * step
            width = self.num_blocks * block + (self.num_blocks - 1) * TEXT
            width = max(width, 0 if self.title is None else _text_width([self.title], TEXT * 0.8) + TEXT)
            canvas = np.full((top + self.gap + self.block_rows * step, width), PAPER, np.uint8)
            height, width = ((side + 1e-6) / DPI for side in canvas.shape)  # matplotlib rounds down
            figure = Figure(figsize=(width, height), dpi=DPI)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            if self.title is not None:
                axes.text(TEXT // 2, TEXT, self.title, fontsize=TEXT * 0.8, va="center")
            for first in range(0, len(self.rows), self.block_rows):
                left = margin + self.gap + first // self.block_rows * (block + TEXT)
                for column, header in self.headers.items():
                    axes.text(left + column * step, top - TEXT // 3, header, fontsize=size, va="baseline")
                for i, row in enumerate(self.rows[first : first + self.block_rows]):
                    y = top + i * step
                    self._draw_row(canvas, y, left, row)
                    if names is not None:
                        place = (left - TEXT // 2, y + step / 2)
                        axes.text(*place, names[first + i], fontsize=size, ha="right", va="center_baseline")
            extent = (0, canvas.shape[1], canvas.shape[0], 0)  # so that a unit is a screen pixel
            axes.imshow(canvas, "gray", aspect="auto", interpolation="none", vmin=0, vmax=255, extent=extent)
        return figure

    def _draw_row(self, canvas: np.ndarray, top: int, left: int, row: Sequence[Image.Image]):
        step = self.side + self.gap
        canvas[top : top + step + self.gap, left - self.gap : left + len(row) * step] = FRAME
        for j, image in enumerate(row):
            pixels = np.asarray(image.convert("L")).repeat(self.scale, axis=0).repeat(self.scale, axis=1)
            canvas[top + self.gap :, left + j * step :][: self.side, : self.side] = pixels

    def image(self) -> Image.Image:
        """The grid as a gray image."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(self.figure())
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L")

    def save(self, path: str | Path, form: str = "png"):
        """Write the grid and, where `form` is pdf or svg, the same beside it."""
        for name in _paths(path, form):
            if name.suffix.lstrip(".") in VECTOR_FORMATS:
                save_figure(self.figure(), name)
            else:
                self.image().save(name)

    def _repr_png_(self) -> bytes:
        return self.image()._repr_png_()


def _text_width(texts: Sequence[str], size: float) -> int:
    """Screen pixels of the widest of some texts, of a size in points."""
    from matplotlib.figure import Figure

    figure = Figure(dpi=DPI)
    return math.ceil(max(figure.text(0, 0, text, fontsize=size).get_window_extent().width for text in texts))


def class_names(config, longest: int = LONGEST) -> list[str]:
    """Names of a model's classes as figures show them."""
    return shown_names((config.id2label[label] for label in range(config.num_labels)), longest)


COMPLETED = {0: "image", 1: "given", 2: "completions"}
UNKNOWN = 128  # gray level


def sample_sheet(model, processor, per_class: int = 10, **generate_arguments) -> ImageGrid:
    """Sample `per_class` images of each class: one row per class, named."""
    names = class_names(model.config)
    labels = np.repeat(np.arange(len(names)), per_class)
    prompt = processor.prompt(class_labels=labels).to(model.device)
    images = processor.decode(model.generate(**prompt, **generate_arguments))
    rows = [images[i : i + per_class] for i in range(0, len(images), per_class)]
    return ImageGrid(rows, names, "Samples, given the class") if len(names) > 1 else ImageGrid(rows, title="Samples")


def completion_sheet(model, processor, images, class_labels, per_image: int = 8, **generate_arguments) -> ImageGrid:
    """Complete the lower half of images: a row has the whole image, what is given of it, `per_image` answers."""
    keep_rows = processor.half_rows
    images = processor.decode_pixels(processor.tokenize(images))  # once: their pixels may be sampled from gray levels
    prompt = processor.prompt(class_labels=class_labels, images=images, keep_rows=keep_rows).to(model.device)
    answers = processor.decode(model.generate(**prompt, num_return_sequences=per_image, **generate_arguments))
    rows = []
    for i, whole in enumerate(processor.decode(processor.tokenize(images))):
        given = whole.copy()
        given.paste(UNKNOWN, (0, keep_rows, whole.width, whole.height))
        rows.append([whole, given, *answers[i * per_image : (i + 1) * per_image]])
    names = class_names(model.config)
    names = [names[label] for label in class_labels] if len(names) > 1 else None
    return ImageGrid(rows, names, "Completions of the lower half", COMPLETED)


def parts_sheet(model, processor, images, class_labels, per_image: int = 6, num_particles: int = 32) -> ImageGrid:
    """Complete four parts of images, one image after the other: a row each, as in `completion_sheet`.

    What is unknown is gray: the lower half, the right half, a hole, and half of the pixels at random.
    """
    side = processor.image_size
    rows, columns = np.indices((side, side))
    center = (np.minimum(rows, columns) >= side // 4) & (np.maximum(rows, columns) < side - side // 4)
    scattered = np.random.default_rng(0).permutation(side**2).reshape(side, side) < (side**2 + 1) // 2
    masks = {
        "lower half": rows >= processor.half_rows,
        "right half": columns >= side // 2,
        "hole": center,
        "half of the pixels": scattered,
    }
    shown = [index % len(images) for index in range(len(masks))]
    pixels = processor.decode_pixels(processor.tokenize(images))[shown]
    labels, unknown = [class_labels[index] for index in shown], np.stack(list(masks.values()))
    prompt = processor.prompt(class_labels=labels, images=pixels, mask=unknown).to(model.device)
    logging.disable(logging.WARNING)  # that a figure's particles are few is no news
    try:
        answers = model.generate(**prompt, num_return_sequences=per_image, num_particles=num_particles)
    finally:
        logging.disable(logging.NOTSET)
    columns = [pixels * 255, np.where(unknown, UNKNOWN, pixels * 255)]
    columns += list(processor.decode_pixels(answers).reshape(len(masks), per_image, side, side).swapaxes(0, 1) * 255)
    grid = [[Image.fromarray(image.astype(np.uint8)) for image in row] for row in zip(*columns, strict=True)]
    return ImageGrid(grid, list(masks), "Completions of what is unknown (gray)", COMPLETED)


def data_sheet(images: Sequence[Image.Image], pixels: np.ndarray, side: int = 112, columns: int = 6) -> ImageGrid:
    """Originals beside what the model sees of them: at most 48 of `images` and `pixels` (n, height, width)."""
    pairs = []
    for image, binary in zip(images[: 8 * columns], pixels, strict=False):
        canvas = Image.new("L", (side, side), 128)  # transparent pixels look gray
        shown = image.convert("I").convert("L") if image.mode.startswith("I;") else image
        width, height = (max(1, round(length * side / max(shown.size))) for length in shown.size)
        shown = shown.convert("RGBA").resize((width, height), Image.Resampling.BILINEAR)
        canvas.paste(
            shown.convert("L"), ((side - shown.width) // 2, (side - shown.height) // 2), shown.getchannel("A")
        )
        seen = Image.fromarray(binary.astype(np.uint8) * 255).resize((side, side), Image.Resampling.NEAREST)
        pairs += [canvas, seen]
    rows = [pairs[i : i + 2 * columns] for i in range(0, len(pairs), 2 * columns)]
    headers = {2 * i + j: words for i in range(len(rows[0]) // 2) for j, words in enumerate(("original", "model"))}
    return ImageGrid(rows, title="Images, and what the model sees of them", headers=headers, scale=1)


# --- curves ---------------------------------------------------------------------------------------------------------


def _training_curves(epochs: Sequence[float], train: Sequence[float], validation: Sequence[float], **labels):
    """A figure with the curves of two splits over whole epochs -> (figure, axes)."""
    from matplotlib.figure import Figure  # a Figure of its own: no global state, no display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, train, "o-", color=GRAY, markersize=4, label="train (a fixed part)")
    axes.plot(epochs, validation, "o-", color=BLUE, markersize=4, label="validation")
    axes.set(xlabel="epoch", xlim=(0, 1.02 * max(1, *epochs)), **labels)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.grid()
    return figure, axes


def _add_legend(figure):
    """Below the axes, where it covers nothing."""
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def loss_curve(epochs, train, validation, best: int | None = None, test: float | None = None):
    """Plot train and validation nats per image over epochs -> a Figure; marks the kept evaluation and the test."""
    with figure_style():
        labels = {"ylabel": "nats per image, given the class", "title": "Negative log-likelihood"}
        figure, axes = _training_curves(epochs, train, validation, **labels)
        if best is not None:
            axes.plot(epochs[best], validation[best], "k*", markersize=14, label=f"kept: {validation[best]:.2f}")
        if test is not None:
            axes.axhline(test, color=RED, linestyle=":", label=f"test: {test:.2f}")
        low, high = min(train + validation), np.percentile(train + validation, 90)
        # The first evaluation may tower.
        axes.set_ylim(low - 0.05 * (high - low) - 0.5, high + 0.3 * (high - low) + 0.5)
        _add_legend(figure)
    return figure


def accuracy_curve(epochs, train, validation, results: dict):
    """Plot a classifier's accuracy over epochs -> a Figure; marks the kept model and the test split's accuracy."""
    from matplotlib.ticker import PercentFormatter

    with figure_style():
        figure, axes = _training_curves(epochs, train, validation, ylabel="accuracy", title="Classification accuracy")
        best, test = results["validation_accuracy"], results["test_accuracy"]
        axes.plot(results["best_epoch"], best, "k*", markersize=14, label=f"kept: {best:.2%}")
        axes.axhline(test, color=RED, linestyle=":", label=f"test: {test:.2%}")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        _add_legend(figure)
    return figure


def probe_curve(layers: list[dict], best: int, title: str):
    """Plot the accuracy of the linear probe of each layer -> a Figure; marks the best by validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with figure_style():
        figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
        axes = figure.subplots()
        for split, color in (("train", GRAY), ("validation", BLUE), ("test", RED)):
            axes.plot([layer[f"{split}_accuracy"] for layer in layers], "o-", markersize=4, label=split, color=color)
        label = f"best by validation: layer {best}, test {layers[best]['test_accuracy']:.2%}"
        axes.plot(best, layers[best]["validation_accuracy"], "k*", markersize=14, label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="layer (0: embeddings)", ylabel="accuracy", title=title)
        axes.grid()
        _add_legend(figure)
    return figure
