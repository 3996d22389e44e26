"""A whole evaluation of a model on a data set: what `igpt evaluate` measures, and the table that it prints.

```python
model, processor = load_pretrained("runs/hoda")  # igpt_hf.hub.loading
evaluation = evaluate_model(model, processor, load_splits("digits.cdb", seed=42), seed=42)
evaluation.report["nats_per_image"]
print(format_table(evaluation.report))
```
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import DatasetDict

from ..data.tokenized import TokenDataset, tokenize
from ..errors import IGPTError
from .codecs import codec_bits
from .compatibility import check_data
from .likelihood import likelihood_report, log_likelihoods, mean_over_draws
from .report_figure import SHOWN
from .surprise import calibration, surprise_maps


class Evaluation(NamedTuple):
    """What `evaluate_model` returns.

    Attributes:
        report: The numbers, ready for JSON; docs/evaluation.md has a line for each.
        examples: Images to show with their surprise maps, as `evaluation_figure` takes them.
        nearest: Samples beside the training images nearest to them, for the same figure; empty without samples.
    """

    report: dict
    examples: dict[str, dict[str, np.ndarray]]
    nearest: dict[str, dict[str, np.ndarray]]


def evaluate_model(
    model,
    processor,
    splits: DatasetDict,
    *,
    split: str = "test",
    max_images: int | None = None,
    num_draws: int = 1,
    num_samples: int | None = None,
    temperature: float = 1.0,
    guidance_scale: float = 1.0,
    prior: str = "data",
    seed: int = 42,
    batch_size: int = 128,
    allow_resize: bool = False,
) -> Evaluation:
    """Measure likelihood, classification, codecs and calibration and, with `num_samples`, the quality of samples.

    Args:
        model, processor, splits: The model, its processor, and what `load_splits` returns; classes match by name.
        split: "train", "validation", "test" or "all".
        max_images: Only the first of the split.
        num_draws: Of the pixels, where `binarize="stochastic"`; likelihoods are means over them.
        num_samples, temperature, guidance_scale: Of the samples; None: no samples. They need the extra `eval`.
        prior: p(class) of mixtures and samples: "data", as in the training split, or "uniform".
        seed: Of the samples and of the classifiers that judge them.
        batch_size: Images at a time.
        allow_resize: Resize images of another size than the model's instead of refusing them.

    Raises:
        DataError: The data does not fit the model, or the split is empty.
        IGPTError: Too few images or samples to compare, or several draws of pixels that a threshold decides.
    """
    class_index = torch.tensor(check_data(splits["train"], model.config, allow_resize))
    _check_numbers(num_draws, num_samples, processor, splits)
    class_prior = _class_prior(splits["train"], class_index, model.config.num_labels, prior)
    chosen = list(splits) if split == "all" else [split]
    needed = chosen if num_samples is None else list(splits)
    tokens = tokenize(DatasetDict({name: splits[name] for name in needed}), processor)
    data = {name: TokenDataset(tokens[name], model.config, seed=seed) for name in needed}
    draws = (_class_prompted_ids({n: data[n] for n in chosen}, class_index, draw) for draw in range(num_draws))
    images = [torch.cat(list(ids.values()))[:max_images] for ids in draws]  # of each draw: (n, 1 + N)
    report, maps = _measure_images(model, processor, images, class_prior, batch_size)
    quality, nearest = {}, {}
    if num_samples is not None:
        ids = _class_prompted_ids(data, class_index, draw=0)
        settings = {"temperature": temperature, "guidance_scale": guidance_scale}
        quality, nearest = _measure_samples((model, processor), ids, class_prior, num_samples, seed, settings)
    about = {"split": split, "seed": seed, "prior": prior, "num_draws": num_draws}
    return Evaluation(about | report | quality, _examples(processor.decode_pixels(images[0]), maps), nearest)


def _check_numbers(num_draws: int, num_samples: int | None, processor, splits: DatasetDict):
    """Refuse several draws of pixels that a threshold decides, and too few images or samples to compare."""
    if num_draws > 1 and processor.binarize != "stochastic":
        raise IGPTError(
            f"--draws {num_draws} samples the pixels of gray images anew, and this model's images are binarized by a "
            "threshold, the same each time: leave it out."
        )
    if num_samples is not None:
        from .sample_quality import check_sizes  # needs the extra `eval`

        check_sizes(num_samples, len(splits["validation"]), len(splits["test"]))


def _class_prior(train, class_index: torch.Tensor, num_labels: int, prior: str) -> torch.Tensor:
    """p(class) in the training split, or equal for all: (num_labels,)."""
    if prior == "uniform":
        return torch.full((num_labels,), 1 / num_labels)
    counts = torch.bincount(class_index[torch.tensor(train["label"][:])], minlength=num_labels)
    return counts / counts.sum()


def _class_prompted_ids(
    data: dict[str, TokenDataset], class_index: torch.Tensor, draw: int
) -> dict[str, torch.Tensor]:
    """Ids of each split, (n, 1 + N), with the prompt of their class in the model; gray pixels are those of a draw."""
    ids = {}
    for name, split in data.items():
        split.choose_epoch(draw)
        ids[name] = split.__getitems__(list(range(len(split))))["input_ids"]
        vocab_size = split.config.vocab_size
        ids[name][:, 0] = vocab_size + class_index[ids[name][:, 0] - vocab_size]
    return ids


def _measure_images(model, processor, draws: list[torch.Tensor], prior: torch.Tensor, batch_size: int):
    """Likelihood, codecs and calibration of images (n, 1 + N) -> numbers, and the surprise maps.

    Of several draws of their pixels, all count for the likelihood, the first for the rest.
    """
    config, images = model.config, draws[0]
    labels, pixels = images[:, 0] - config.vocab_size, processor.decode_pixels(images)
    report: dict[str, Any] = {"class_names": config.class_names}
    reports = [
        likelihood_report(log_likelihoods(model, ids, batch_size), labels, prior, config.num_pixels) for ids in draws
    ]
    report |= mean_over_draws(reports) if len(reports) > 1 else reports[0]
    report["nats_per_class"] = {config.class_names[label]: nats for label, nats in report["nats_per_class"].items()}
    for name in ("", "_marginal"):
        report[f"bits_per_image{name}"] = report[f"nats_per_image{name}"] / math.log(2)
    report["codecs"] = codec_bits(pixels)
    maps = surprise_maps(model, images, batch_size)
    report["calibration"] = calibration(maps["white"], pixels)
    return report, maps


def _measure_samples(loaded: tuple, ids: dict[str, torch.Tensor], prior: torch.Tensor, num: int, seed: int, settings):
    """Compare samples of a model, `loaded` with its processor, with the three splits -> numbers, nearest images."""
    from .sample_quality import Images, draw_samples, nearest_neighbors, sample_report

    model, processor = loaded
    real = {
        name: Images(processor.decode_pixels(rows), (rows[:, 0] - model.config.vocab_size).numpy())
        for name, rows in ids.items()
    }
    samples = draw_samples(model, processor, prior, num, seed, **settings)
    quality = settings | sample_report(samples, real, model.config.num_labels, seed)
    neighbor, distance = nearest_neighbors(samples.pixels, real["train"].pixels)
    strips: dict[str, Any] = {
        "First samples": slice(SHOWN),
        "Samples most like copies": distance.argsort(kind="stable")[:SHOWN],
    }
    train = real["train"].pixels
    nearest = {
        name: {"samples": samples.pixels[rows], "neighbors": train[neighbor[rows]], "distance": distance[rows]}
        for name, rows in strips.items()
    }
    return quality, nearest


def _examples(pixels: np.ndarray, maps: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The hardest, the most ordinary and the easiest images, none twice, with their surprise maps; all if few."""
    nats = maps["pixels"].sum(axis=(1, 2))
    order = nats.argsort(kind="stable")
    count = min(SHOWN, len(order) // 3)
    middle = (len(order) - count) // 2
    strips = {"Hardest images": order[::-1][:count], "Ordinary images": order[middle : middle + count]}
    strips["Easiest images"] = order[:count]
    if len(order) <= SHOWN:
        strips = {"All images, the hardest first": order[::-1]}
    arrays = {"pixels": pixels, "nats": nats, "token_nats": maps["tokens"], "pixel_nats": maps["pixels"]}
    return {name: {key: array[rows] for key, array in arrays.items()} for name, rows in strips.items()}


def format_table(report: dict) -> str:
    """The numbers of a report as text, one a line; ± is the standard error of the mean."""
    lines = [(f"{report['num_images']} images", report["split"]), *_image_lines(report)]
    if "num_samples" in report:
        lines += [(f"{report['num_samples']} samples", f"compared with {report['num_compared']} real images")]
        lines += _sample_lines(report)
    return "\n".join(f"{meaning:>36}  {value}" for meaning, value in lines)


def _image_lines(report: dict) -> list[tuple[str, str]]:
    names = {"": "class-conditional", "_marginal": "marginal over classes", "_unconditional": "unconditional"}
    lines = []
    for suffix, meaning in names.items():
        name = f"nats_per_image{suffix}"
        line = f"{report[name]:8.3f} ± {report[f'{name}_stderr']:.3f} nats/image"
        if report["num_draws"] > 1:
            deviation = report[f"{name}_draws_std"]
            line += f"; {report['num_draws']} draws of the pixels have a standard deviation of {deviation:.3f}"
        lines.append((meaning, line))
    lines.append(("class-conditional", f"{report['bits_per_pixel']:8.5f} bits/pixel"))
    if report["bayes_accuracy"] is not None:  # there is more than one class
        lines.append(("accuracy of Bayes' rule", f"{report['bayes_accuracy']:8.2%}"))
    lines.append(("calibration error of pixels", f"{report['calibration']['calibration_error']:8.3%}"))
    lines.append(("model, marginal over classes", f"{report['bits_per_image_marginal']:8.1f} bits/image"))
    for name, bits in report["codecs"].items():
        lines.append((name, f"{bits['in_sheets']:8.1f} bits/image in large sheets, {bits['alone']:.1f} one by one"))
    return lines


def _sample_lines(report: dict) -> list[tuple[str, str]]:
    lines, has_classes = [], report["sample_accuracy"] is not None
    if has_classes:
        accuracy = f"{report['sample_accuracy']:8.2%} ± {report['sample_accuracy_stderr']:.2%}"
        lines.append(("classifier accuracy on test images", f"{report['classifier_test_accuracy']:8.2%}"))
        lines.append(("on samples", accuracy))
    for name in ("fid", "precision", "recall", "density", "coverage"):
        lines.append((name, f"{report[name]:8.3f}  (real images: {report[f'{name}_real_floor']:.3f})"))
    if has_classes:
        real = (
            f"(of {report['num_trained_on']}; trained on as many real images: {report['train_on_real_accuracy']:.2%})"
        )
        lines.append(("trained on samples, test accuracy", f"{report['train_on_samples_accuracy']:8.2%} {real}"))
    accuracy = f"{report['two_sample_accuracy']:8.2%} ± {report['two_sample_accuracy_stderr']:.2%}"
    lines.append(("two-sample test accuracy", f"{accuracy} (chance: 50%)"))
    test = report["nearest_training_pixels_test"]
    lines.append(("nearest training image", f"{report['nearest_training_pixels']:8.1f} pixels off (test: {test:.1f})"))
    copies = f"{report['exact_copies']:8.2%} (test images: {report['exact_copies_test']:.2%})"
    return [*lines, ("exact copies of training images", copies)]
