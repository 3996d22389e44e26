"""Figures of runs and evaluations: grids of images, completions, curves. matplotlib is imported where it is needed."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps


def image_grid(
    rows: Sequence[Sequence[Image.Image]], names: Sequence[str] | None = None, scale: int = 2
) -> Image.Image:
    """Lay out images of one size in rows, with a name before each row: r rows -> one gray image.

    Raises:
        ValueError: No image at all.
    """
    if not rows or not rows[0]:
        raise ValueError("a grid needs at least one image.")
    side, gap = rows[0][0].width * scale, 2 * scale
    margin = 0 if names is None else 8 + 7 * max(len(name) for name in names)
    width = margin + gap + max(len(row) for row in rows) * (side + gap)
    grid = Image.new("L", (width, gap + len(rows) * (side + gap)), 64)
    draw = ImageDraw.Draw(grid)
    for i, row in enumerate(rows):
        top = gap + i * (side + gap)
        if names is not None:
            draw.text((6, top + side // 2), names[i], fill=255, anchor="lm")
        for j, image in enumerate(row):
            grid.paste(image.resize((side, side), Image.Resampling.NEAREST), (margin + gap + j * (side + gap), top))
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
        axes.axhline(test, color="gray", linestyle=":", label=f"test: {test:.2f}")
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
    axes.axhline(test, color="gray", linestyle=":", label=f"test: {test:.2%}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="epoch", ylabel="accuracy", title="Accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def sample_sheet(model, processor, per_class: int = 10, **generate_arguments) -> Image.Image:
    """Sample `per_class` images of each class: one row per class, named."""
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    labels = np.repeat(np.arange(len(names)), per_class)
    prompt = processor.prompt(class_labels=labels).to(model.device)
    images = processor.decode(model.generate(**prompt, **generate_arguments))
    rows = [images[i : i + per_class] for i in range(0, len(images), per_class)]
    return image_grid(rows, names)


def completion_sheet(model, processor, images, class_labels, per_image: int = 8, **generate_arguments) -> Image.Image:
    """Complete the lower half of images: a row has the whole image, what is given of it, `per_image` answers."""
    keep_rows = processor.half_rows
    images = processor.decode_pixels(processor.tokenize(images))  # once: their pixels may be sampled from gray levels
    prompt = processor.prompt(class_labels=class_labels, images=images, keep_rows=keep_rows).to(model.device)
    answers = processor.decode(model.generate(**prompt, num_return_sequences=per_image, **generate_arguments))
    rows = []
    for i, whole in enumerate(processor.decode(processor.tokenize(images))):
        given = whole.copy()
        given.paste(0, (0, keep_rows, whole.width, whole.height))
        rows.append([whole, given, *answers[i * per_image : (i + 1) * per_image]])
    return image_grid(rows, [model.config.id2label[label] for label in class_labels])


def parts_sheet(model, processor, images, class_labels, per_image: int = 6, num_particles: int = 32) -> Image.Image:
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
    columns = [pixels * 255, np.where(unknown, 128, pixels * 255)]
    columns += list(processor.decode_pixels(answers).reshape(len(masks), per_image, side, side).swapaxes(0, 1) * 255)
    grid = [[Image.fromarray(image.astype(np.uint8)) for image in row] for row in zip(*columns, strict=True)]
    return image_grid(grid, list(masks))


SHOWN = 14  # images in a strip
BLUE, RED, GRAY = "#3b6ea5", "#c44e52", "#8c8c8c"


def evaluation_figure(
    path: str | Path,
    report: dict,
    title: str,
    examples: dict[str, dict[str, np.ndarray]],
    nearest: dict[str, dict[str, np.ndarray]],
):
    """Draw calibration, nats per class, confusion, codecs, images with their surprise, samples with their neighbors.

    Args:
        path: Of the PNG.
        report: What evaluate.py writes.
        title: A line at the top.
        examples: By the name of the strip, at most 14 images: `pixels` (n, height, width), `nats` (n,), and the maps
            `pixel_nats` and `token_nats`.
        nearest: By the name of the strip, samples beside training images, none without samples: `samples`,
            `neighbors` (n, height, width), `distance` (n,).
    """
    from matplotlib.figure import Figure

    strips = [3] * len(examples) + [2] * len(nearest)  # rows of images in each
    heights = [4.6] + [1.15 * rows + 0.55 for rows in strips]  # inches
    figure = Figure(figsize=(16, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=14)
    top, *others = figure.subfigures(len(heights), height_ratios=heights, hspace=0.03)

    calibration_axes, class_axes, confusion_axes, codec_axes = top.subplots(1, 4)
    _draw_calibration(calibration_axes, report)
    _draw_nats_per_class(class_axes, report)
    _draw_confusion(confusion_axes, report)
    _draw_codecs(codec_axes, report)
    for (name, images), part in zip(examples.items(), others, strict=False):
        rows = {"image": images["pixels"], "nats per token": images["token_nats"], "per pixel": images["pixel_nats"]}
        _draw_strip(part, f"{name}, nats given the class", rows, [f"{nats:.1f}" for nats in images["nats"]])
    for (name, images), part in zip(nearest.items(), others[len(examples) :], strict=True):
        rows = {"sample": images["samples"], "nearest": images["neighbors"]}
        title = f"{name}, the training image nearest to each, and in how many pixels they differ"
        _draw_strip(part, title, rows, [str(distance) for distance in images["distance"]])
    figure.savefig(path, dpi=100)


def _draw_calibration(axes, report: dict):
    bins = report["calibration"]
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":")
    axes.plot(bins["predicted"], bins["observed"], "o-", color=BLUE, markersize=4)
    axes.set(xlabel="predicted probability of white", ylabel="fraction of white pixels", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"Calibration of pixels: off by {bins['calibration_error']:.2%}")
    counts = axes.twinx()
    counts.bar(bins["predicted"], bins["count"], width=0.035, color=GRAY, alpha=0.3)
    counts.set(yscale="log", ylabel="pixels (bars)")
    for both in (axes, counts):
        both.set_box_aspect(1)
    axes.set_zorder(counts.get_zorder() + 1)
    axes.patch.set_visible(False)


def _draw_nats_per_class(axes, report: dict):
    names, nats = list(report["nats_per_class"]), list(report["nats_per_class"].values())
    axes.barh(names, nats, color=BLUE)
    axes.axvline(report["nats_per_image"], color=RED)
    axes.invert_yaxis()
    axes.set(
        xlabel="nats per image, given the class", title=f"Nats per class (line: all, {report['nats_per_image']:.2f})"
    )
    axes.set_box_aspect(1)


def _draw_confusion(axes, report: dict):
    if report["confusion_matrix"] is None:
        axes.text(0.5, 0.5, "one class:\nnothing to classify", ha="center", va="center", color=GRAY)
        axes.set(title="Bayes' rule", xticks=[], yticks=[])
        axes.set_box_aspect(1)
        return
    counts = np.array(report["confusion_matrix"])
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    names = list(report["class_names"])
    if len(names) <= 15:
        for row, column in np.argwhere(counts):
            color = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="class by Bayes' rule", ylabel="class", title=f"Bayes' rule: {report['bayes_accuracy']:.2%}")


def _draw_codecs(axes, report: dict):
    bits = {"model, class-conditional": report["bits_per_image"], "model, marginal": report["bits_per_image_marginal"]}
    bits |= {f"{name}, in sheets": codec["in_sheets"] for name, codec in report["codecs"].items()}
    bits |= {f"{name}, alone": codec["alone"] for name, codec in report["codecs"].items()}
    names = [name.replace("_", " ") for name in bits]
    bars = axes.barh(names, list(bits.values()), color=[RED, RED, *[BLUE] * (len(bits) - 2)])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="bits per image", title="Lossless codecs", xlim=(None, max(bits.values()) * 2.5))
    axes.set_box_aspect(1)


def _draw_strip(figure, title: str, rows: dict[str, np.ndarray], captions: list[str]):
    """Rows of images, captions above the first; binary images in black and white, others as heat maps of one scale."""
    figure.suptitle(title, fontsize=11, fontweight="bold")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        is_binary = images.dtype == np.uint8
        scale = {"cmap": "gray", "vmax": 1} if is_binary else {"cmap": "magma", "vmax": np.quantile(images, 0.998)}
        num, side, _ = images.shape
        gap = max(1, side // 14)
        line = np.full((side, SHOWN * (side + gap) - gap), np.nan)  # one image for all: axes are slow
        for i, image in enumerate(images):
            line[:, i * (side + gap) : i * (side + gap) + side] = image
        axes.imshow(line, vmin=0, interpolation="nearest", **scale)
        axes.set_ylabel(name, fontsize=8)
        axes.set_xticks([i * (side + gap) + (side - 1) / 2 for i in range(num)], captions, fontsize=8)
        axes.tick_params(length=0, labelbottom=False, labeltop=name == next(iter(rows)), labelleft=False)
        axes.spines[:].set_visible(False)


def probe_curve(path: str | Path, layers: list[dict], best: int, title: str):
    """Draw the accuracy of the linear probe of each layer into a PNG; marks the best by validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for split, color in (("train", GRAY), ("validation", BLUE), ("test", RED)):
        axes.plot([layer[f"{split}_accuracy"] for layer in layers], "o-", markersize=4, label=split, color=color)
    label = f"best by validation: layer {best}, test {layers[best]['test_accuracy']:.2%}"
    axes.plot(best, layers[best]["validation_accuracy"], "k*", markersize=13, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer (0: embeddings)", ylabel="accuracy", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def data_sheet(images: Sequence[Image.Image], pixels: np.ndarray, side: int = 112, columns: int = 6) -> Image.Image:
    """Originals beside what the model sees of them: at most 48 of `images` and `pixels` (n, height, width)."""
    pairs = []
    for image, binary in zip(images[: 8 * columns], pixels, strict=False):
        canvas = Image.new("L", (side, side), 128)  # transparent pixels look gray
        shown = image.convert("I").convert("L") if image.mode.startswith("I;") else image
        shown = ImageOps.contain(shown.convert("RGBA"), (side, side), Image.Resampling.BILINEAR)
        canvas.paste(
            shown.convert("L"), ((side - shown.width) // 2, (side - shown.height) // 2), shown.getchannel("A")
        )
        seen = Image.fromarray(binary.astype(np.uint8) * 255).resize((side, side), Image.Resampling.NEAREST)
        pairs += [canvas, seen]
    return image_grid([pairs[i : i + 2 * columns] for i in range(0, len(pairs), 2 * columns)], scale=1)
