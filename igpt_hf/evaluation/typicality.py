"""How typical an image is of the training data: the rank of its nats among those of the validation images."""

import math

import numpy as np
import torch

from .likelihood import log_likelihoods


NUM_IMAGES = 1000  # of the validation split: enough for percentiles, seconds to compute


def marginal_nats(scores: dict[str, torch.Tensor]) -> torch.Tensor:
    """-ln p(image), the class unknown and all classes equally likely: `log_likelihoods` -> (n,) nats."""
    classes = scores["classes"]
    return math.log(classes.shape[1]) - classes.logsumexp(dim=1)


def nats_quantiles(model, input_ids: torch.Tensor) -> list[float]:
    """The 0th, 1st, ... 100th percentile of the marginal nats of the first images (n, 1 + N)."""
    nats = marginal_nats(log_likelihoods(model, input_ids[:NUM_IMAGES]))
    return [round(value, 3) for value in np.percentile(nats.numpy(), range(101)).tolist()]


def percentiles(nats: torch.Tensor, quantiles: list[float]) -> np.ndarray:
    """Percentage of the validation images with fewer nats: (n,) nats -> (n,), 0 to 100.

    Both ends are strange: near 100 is unlike anything in the training data; near 0 is simpler than all of it, such as
    an empty image.
    """
    return np.interp(nats.numpy(), quantiles, range(101))
