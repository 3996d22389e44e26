"""Exact likelihoods of a data set under a model, with everything that makes them comparable with published numbers."""

import math
import statistics
from typing import Any

import torch
from tqdm.auto import tqdm

from ..errors import DataError
from ..model.neighborhood import with_start_token


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean of n values, (n,); 0 for a single value."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0


def accuracy_stderr(accuracy: float, num: int) -> float:
    """Standard error of a fraction of `num` images."""
    return math.sqrt(accuracy * (1 - accuracy) / num)


def log_likelihoods(model, input_ids: torch.Tensor, batch_size: int = 128) -> dict[str, torch.Tensor]:
    """Compute exact log-likelihoods of images under every prompt, in natural log, float64.

    Args:
        model: An `IGPTForCausalImageModeling`.
        input_ids: (n, 1 + N); their prompts do not matter.
        batch_size: Images at a time.

    Returns:
        `classes`: ln p(image | class), (n, num_labels); `start`: ln p(image | start token), (n,).
    """
    classes, start = [], []
    for chunk in tqdm(input_ids.split(batch_size), desc="Likelihood", unit="batch", delay=2, disable=None):
        classes.append(model.class_log_likelihoods(chunk, batch_size).cpu())
        start.append(model.log_likelihood(with_start_token(chunk, model.config), batch_size).cpu())
    return {"classes": torch.cat(classes), "start": torch.cat(start)}


def likelihood_report(scores: dict[str, torch.Tensor], labels: torch.Tensor, prior: torch.Tensor, num_pixels: int):
    """Summarize `log_likelihoods`: means in nats per image, with their standard errors where it matters.

    * `nats_per_image`: -ln p(image | its class).
    * `nats_per_image_marginal`: -ln sum over classes of p(class) p(image | class). Exact, uses no label: the number to
      hold beside published ones.
    * `nats_per_image_unconditional`: -ln p(image | start token).
    * `bayes_accuracy`: fraction of images whose class has the highest posterior, p(class) p(image | class);
      `confusion_matrix`: how many images of each class (row) have it where (column). Both are None where the prior
      has one class only.

    Args:
        scores: From `log_likelihoods`.
        labels: Class of each image, (n,).
        prior: p(class), (num_labels,).
        num_pixels: Of an image, for bits per pixel.

    Raises:
        DataError: No images.
    """
    if len(labels) == 0:
        raise DataError("there are no images to evaluate: the split is empty. Choose another --split or data.")
    conditional = -scores["classes"].gather(1, labels[:, None]).squeeze(1)  # (n,)
    joint = scores["classes"] + prior.double().log()  # (n, num_labels)
    marginal, start = -joint.logsumexp(dim=1), -scores["start"]
    report: dict[str, Any] = {"num_images": len(labels)}
    for name, nats in (("", conditional), ("_marginal", marginal), ("_unconditional", start)):
        report[f"nats_per_image{name}"] = nats.mean().item()
        report[f"nats_per_image{name}_stderr"] = standard_error(nats)
    report["bits_per_pixel"] = report["nats_per_image"] / (num_pixels * math.log(2))
    report |= {"bayes_accuracy": None, "confusion_matrix": None}
    if (prior > 0).sum() > 1:
        predicted = joint.argmax(dim=1)
        report["bayes_accuracy"] = (predicted == labels).double().mean().item()
        pairs = torch.bincount(labels * len(prior) + predicted, minlength=len(prior) ** 2)
        report["confusion_matrix"] = pairs.view(len(prior), len(prior)).tolist()
    report["nats_per_class"] = {
        label: conditional[labels == label].mean().item() for label in range(len(prior)) if (labels == label).any()
    }
    return report


def mean_over_draws(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the `likelihood_report`s of several draws of the same images' pixels.

    Likelihoods and accuracy become means over the draws; beside each `nats_per_image...`, `..._draws` lists its value
    in each and `..._draws_std` is their standard deviation. The rest, standard errors and the confusion matrix, is
    that of the first draw.
    """
    report = dict(reports[0])
    names = ["nats_per_image", "nats_per_image_marginal", "nats_per_image_unconditional"]
    for name in names:
        values = [other[name] for other in reports]
        report |= {f"{name}_draws": values, f"{name}_draws_std": statistics.stdev(values)}
    for name in (*names, "bits_per_pixel", "bayes_accuracy"):
        if report[name] is not None:
            report[name] = statistics.fmean(other[name] for other in reports)
    report["nats_per_class"] = {
        label: statistics.fmean(other["nats_per_class"][label] for other in reports)
        for label in report["nats_per_class"]
    }
    return report
