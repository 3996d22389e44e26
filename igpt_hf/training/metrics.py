"""Exact likelihood per image, and the accuracy of classifiers, as the Trainer's metrics."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..evaluation.likelihood import standard_error
from ..model.input_checks import to_double


def nats_per_image(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Reduce logits to what is exact per image: (B, T, V), (B, T) -> (B,) nats, float64, wherever the batch ends."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return to_double(losses).sum(dim=1)


def likelihood_metrics(num_pixels: int):
    """Make the Trainer's `compute_metrics`: mean nats per image, its standard error, and bits per pixel."""

    def compute_metrics(prediction) -> dict[str, float]:
        nats = np.asarray(prediction.predictions, dtype=np.float64)
        return {
            "nats_per_image": float(nats.mean()),
            "nats_per_image_stderr": standard_error(torch.from_numpy(nats)),
            "bits_per_pixel": float(nats.mean() / (num_pixels * math.log(2))),
        }

    return compute_metrics


def classification_metrics(prediction) -> dict[str, float]:
    """The Trainer's `compute_metrics` for a classifier; exact means over the images, wherever a batch ends."""
    logits, nats = (torch.from_numpy(np.asarray(array)).double() for array in prediction.predictions)  # (n, C), (n,)
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    is_correct = (logits.argmax(dim=1) == labels).double()
    return {
        "accuracy": is_correct.mean().item(),
        "accuracy_stderr": standard_error(is_correct),
        "cross_entropy": torch.nn.functional.cross_entropy(logits, labels).item(),
        "nats_per_image_unconditional": nats.mean().item(),
    }


@dataclass
class LossHistory:
    """A metric of train and validation, nats per image unless said otherwise, measured alike at the same steps."""

    steps: list[int]
    epochs: list[float]
    train: list[float]
    validation: list[float]

    @classmethod
    def from_log(cls, log_history: list[dict], metric: str = "nats_per_image") -> "LossHistory":
        """Read the Trainer's log: the evaluations of both splits, joined by step."""
        rows: dict[int, dict[str, Any]] = {}
        for entry in log_history:
            for split in ("train", "validation"):
                if f"eval_{split}_{metric}" in entry:
                    row = rows.setdefault(entry["step"], {"step": entry["step"], "epoch": entry["epoch"]})
                    row[split] = entry[f"eval_{split}_{metric}"]
        complete = [row for _, row in sorted(rows.items()) if "train" in row and "validation" in row]
        return cls(*([row[key] for row in complete] for key in ("step", "epoch", "train", "validation")))

    @property
    def best(self) -> int:
        """Index of the evaluation with the lowest validation loss."""
        return int(np.argmin(self.validation))

    def is_monotonic(self, split: str) -> bool:
        """Whether the loss fell at every evaluation up to the best one."""
        return bool(np.all(np.diff(getattr(self, split)[: self.best + 1]) < 0))
