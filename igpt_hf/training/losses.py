"""The loss of gray images whose pixels are sampled: expected over the pixels that a token could have had."""

from collections.abc import Callable

import torch


def expected_loss(token_probs: torch.Tensor) -> Callable:
    """Make the mean NLL per token, expected over the tokens of gray images.

    A pixel is white with the probability of its gray level, and the next token given a gray image does not depend on
    the tokens before it. So the sampled token, one of V, can be replaced by its distribution: the gradient is the
    conditional expectation of the sampled one's, the same on average and less noisy (Rao-Blackwell).

    Args:
        token_probs: The probability of each token that is predicted, (B, N, V).

    Returns:
        A function of `logits` (B, 1 + N, V) and `num_items_in_batch`, the number of tokens that the loss is divided
        by, by default all in the batch: nats per token.
    """

    def loss(logits, labels=None, num_items_in_batch=None):
        predictions = logits[:, :-1].float().flatten(0, 1)  # (B * N, V)
        nats = torch.nn.functional.cross_entropy(predictions, token_probs.flatten(0, 1), reduction="sum")
        return nats / (token_probs[..., 0].numel() if num_items_in_batch is None else num_items_in_batch)

    return loss
