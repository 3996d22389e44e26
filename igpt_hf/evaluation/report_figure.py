"""The figure that `igpt evaluate` writes beside its report."""

import numpy as np

from ..plots import BLUE, GRAY, RED, figure_style, shown_names


SHOWN = 14  # images in a strip
MAX_NAMES, LONGEST = 16, 12  # names of classes along an axis, and characters of a name


def evaluation_figure(
    report: dict,
    title: str,
    examples: dict[str, dict[str, np.ndarray]],
    nearest: dict[str, dict[str, np.ndarray]],
):
    """Plot calibration, nats per class, confusion, codecs, images with their surprise, samples with their neighbors.

    Args:
        report: What evaluate.py writes.
        title: A line at the top.
        examples: By the name of the strip, at most 14 images: `pixels` (n, height, width), `nats` (n,), and the maps
            `pixel_nats` and `token_nats`.
        nearest: By the name of the strip, samples beside training images, none without samples: `samples`,
            `neighbors` (n, height, width), `distance` (n,).
    """
    from matplotlib.figure import Figure

    strips = [3] * len(examples) + [2] * len(nearest)  # rows of images in each
    heights = [4.8] + [1.15 * rows + 0.75 for rows in strips]  # inches
    with figure_style(shown_names(report["class_names"])):
        figure = Figure(figsize=(18, sum(heights) + 0.5), dpi=120, layout="constrained")
        figure.suptitle(title, fontsize=16)
        top, *others = figure.subfigures(len(heights), height_ratios=heights, hspace=0.03)
        plots = (_plot_calibration, _plot_nats_per_class, _plot_confusion, _plot_codecs)
        for axes, plot in zip(top.subplots(1, len(plots)), plots, strict=True):
            plot(axes, report)
        for (name, images), part in zip(examples.items(), others, strict=False):
            rows = {"image": images["pixels"], "per token": images["token_nats"], "per pixel": images["pixel_nats"]}
            captions = [f"{nats:.1f}" for nats in images["nats"]]
            _plot_strip(part, f"{name}: nats given the class, and where they arise", rows, captions)
        for (name, images), part in zip(nearest.items(), others[len(examples) :], strict=True):
            rows = {"sample": images["samples"], "nearest": images["neighbors"]}
            title = f"{name}: the nearest training image of each, and the number of pixels that differ"
            _plot_strip(part, title, rows, [str(distance) for distance in images["distance"]])
    return figure


def _plot_calibration(axes, report: dict):
    bins = report["calibration"]
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":")
    axes.plot(bins["predicted"], bins["observed"], "o-", color=BLUE, markersize=4)
    axes.set(
        xlabel="predicted probability of white (bars: pixels)",
        ylabel="fraction of white pixels",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.set_title(f"Calibration of pixels: off by {bins['calibration_error']:.2%}")
    counts = axes.twinx()
    counts.bar(bins["predicted"], bins["count"], width=0.035, color=GRAY, alpha=0.3)
    counts.set_yscale("log")
    _plain_numbers(counts.yaxis)
    for both in (axes, counts):
        both.set_box_aspect(1)
    axes.set_zorder(counts.get_zorder() + 1)
    axes.patch.set_visible(False)


def _plain_numbers(axis):
    """Powers of ten on a logarithmic axis, as numbers; between them no label."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def _plot_nats_per_class(axes, report: dict):
    names, nats = shown_names(report["nats_per_class"], LONGEST), list(report["nats_per_class"].values())
    shown, title = list(range(len(names))), f"Nats per class (all: {report['nats_per_image']:.2f})"
    if len(names) > MAX_NAMES:
        order = np.argsort(nats)[::-1]
        shown = [*order[: MAX_NAMES // 2], *order[-(MAX_NAMES // 2) :]]
        title = f"The {MAX_NAMES // 2} hardest and easiest of {len(names)} classes"
    axes.barh(range(len(shown)), [nats[label] for label in shown], color=BLUE)
    axes.set_yticks(range(len(shown)), [names[label] for label in shown])
    axes.axvline(report["nats_per_image"], color=RED)
    axes.invert_yaxis()
    axes.set(xlabel="nats per image, given the class", title=title)
    axes.set_box_aspect(1)


def _plot_confusion(axes, report: dict):
    from matplotlib.ticker import MaxNLocator

    if report["confusion_matrix"] is None:
        axes.text(0.5, 0.5, "one class:\nnothing to classify", ha="center", va="center", color=GRAY)
        axes.set(title="Bayes' rule", xticks=[], yticks=[])
        axes.set_box_aspect(1)
        return
    counts = np.array(report["confusion_matrix"])
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    names = shown_names(report["class_names"], LONGEST)
    if len(names) <= MAX_NAMES:
        size = min(12, 100 / len(names))
        for row, column in np.argwhere(counts):
            color = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=size)
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 90)
        axes.set_yticks(range(len(names)), names)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="class by Bayes' rule", ylabel="class", title=f"Bayes' rule: {report['bayes_accuracy']:.2%}")


def _plot_codecs(axes, report: dict):
    from matplotlib.ticker import MaxNLocator

    bits = {"model, class-conditional": report["bits_per_image"], "model, marginal": report["bits_per_image_marginal"]}
    bits |= {f"{name}, in sheets": codec["in_sheets"] for name, codec in report["codecs"].items()}
    bits |= {f"{name}, alone": codec["alone"] for name, codec in report["codecs"].items()}
    names = [name.replace("_", " ") for name in bits]
    bars = axes.barh(names, list(bits.values()), color=[RED, RED, *[BLUE] * (len(bits) - 2)])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    # From zero, so that bars are as long as what they say; the longest are those of codecs with headers.
    axes.set(xlabel="bits per image", title="Lossless codecs", xlim=(0, max(bits.values()) * 1.2))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_box_aspect(1)


def _plot_strip(figure, title: str, rows: dict[str, np.ndarray], captions: list[str]):
    """Rows of images, captions above the first; binary images in black and white, others as heat maps of one scale."""
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        is_binary = images.dtype == np.uint8
        scale = {"cmap": "gray", "vmax": 1} if is_binary else {"cmap": "magma", "vmax": np.quantile(images, 0.998)}
        num, side, _ = images.shape
        gap = max(1, side // 14)
        line = np.full((side, SHOWN * (side + gap) - gap), np.nan)  # one image for all: axes are slow
        for i, image in enumerate(images):
            line[:, i * (side + gap) : i * (side + gap) + side] = image
        axes.imshow(line, vmin=0, interpolation="nearest", **scale)
        axes.set_ylabel(name, fontsize=11)
        axes.set_xticks([i * (side + gap) + (side - 1) / 2 for i in range(num)], captions, fontsize=11)
        axes.tick_params(length=0, labelbottom=False, labeltop=name == next(iter(rows)), labelleft=False)
        axes.spines[:].set_visible(False)
