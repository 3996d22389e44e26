"""Pictures of a run: grids of images, completions and loss curves. matplotlib is imported where it is needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def image_grid(
    rows: Sequence[Sequence[Image.Image]], names: Sequence[str] | None = None, scale: int = 2
) -> Image.Image:
    """Lay out pictures of one size in rows, with a name before each row: r rows -> one grey picture.

    Raises:
        ValueError: No picture at all.
    """
    if not rows or not rows[0]:
        raise ValueError("a grid needs at least one picture.")
    side, gap = rows[0][0].width * scale, 2 * scale
    margin = 0 if names is None else 8 + 7 * max(len(name) for name in names)
    width = margin + gap + max(len(row) for row in rows) * (side + gap)
    grid = Image.new("L", (width, gap + len(rows) * (side + gap)), 64)
    draw = ImageDraw.Draw(grid)
    for i, row in enumerate(rows):
        top = gap + i * (side + gap)
        if names is not None:
            draw.text((6, top + side // 2), names[i], fill=255, anchor="lm")
        for j, picture in enumerate(row):
            grid.paste(picture.resize((side, side), Image.Resampling.NEAREST), (margin + gap + j * (side + gap), top))
    return grid


def loss_curve(epochs, train, validation, path: str | Path, best: int | None = None, test: float | None = None):
    """Draw train and validation nats per image over epochs into a PNG; marks the kept evaluation and the test loss."""
    from matplotlib.figure import Figure  # a Figure of its own: no global state, no display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, train, "o-", markersize=3, label="train (fixed part, evaluated like validation)")
    axes.plot(epochs, validation, "o-", markersize=3, label="validation")
    if best is not None:
        axes.plot(epochs[best], validation[best], "k*", markersize=12, label=f"kept: {validation[best]:.2f}")
    if test is not None:
        axes.axhline(test, color="grey", linestyle=":", label=f"test: {test:.2f}")
    low, high = min(train + validation), np.percentile(train + validation, 90)
    axes.set_ylim(low - 0.05 * (high - low) - 0.5, high + 0.3 * (high - low) + 0.5)  # the first evaluation may tower
    axes.set(xlabel="epoch", ylabel="nats per image, given the class", title="Negative log-likelihood")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def accuracy_curve(epochs, train, validation, results: dict, path: str | Path):
    """Draw a classifier's train and validation accuracy over epochs into a PNG; marks the kept model and the test."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, train, "o-", markersize=3, label="train (fixed part, evaluated like validation)")
    axes.plot(epochs, validation, "o-", markersize=3, label="validation")
    best, test = results["validation_accuracy"], results["test_accuracy"]
    axes.plot(results["best_epoch"], best, "k*", markersize=12, label=f"kept: {best:.2%}")
    axes.axhline(test, color="grey", linestyle=":", label=f"test: {test:.2%}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="epoch", ylabel="right", title="Accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def sample_sheet(model, processor, per_class: int = 10, **generate_arguments) -> Image.Image:
    """Sample `per_class` images of each class: one row per class, named."""
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    labels = np.repeat(np.arange(len(names)), per_class)
    prompt = processor.prompt(class_labels=labels).to(model.device)
    pictures = processor.decode(model.generate(**prompt, **generate_arguments))
    rows = [pictures[i : i + per_class] for i in range(0, len(pictures), per_class)]
    return image_grid(rows, names)


def completion_sheet(model, processor, images, class_labels, per_image: int = 8, **generate_arguments) -> Image.Image:
    """Complete the lower half of images: a row has the whole image, what is given of it, `per_image` answers."""
    keep_rows = processor.grid_size // 2 * processor.patch_size
    images = processor.decode_pixels(processor.tokenize(images))  # once: their pixels may be drawn from grey levels
    prompt = processor.prompt(class_labels=class_labels, images=images, keep_rows=keep_rows).to(model.device)
    answers = processor.decode(model.generate(**prompt, num_return_sequences=per_image, **generate_arguments))
    rows = []
    for i, whole in enumerate(processor.decode(processor.tokenize(images))):
        given = whole.copy()
        given.paste(0, (0, keep_rows, whole.width, whole.height))
        rows.append([whole, given, *answers[i * per_image : (i + 1) * per_image]])
    return image_grid(rows, [model.config.id2label[label] for label in class_labels])


__all__ = ["accuracy_curve", "completion_sheet", "image_grid", "loss_curve", "sample_sheet"]
