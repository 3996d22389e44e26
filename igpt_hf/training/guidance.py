"""Guidance that is learned, instead of computed at each step of sampling."""

from collections.abc import Callable

import torch

from ..model.neighborhood import prompt_classes, with_start_token


def built_in_guidance_loss(
    model, inputs: dict[str, torch.Tensor], unwrapped, scale: float, token_loss: Callable
) -> Callable:
    """Make the loss of a batch with which a model learns to sample as if it were guided.

    Guidance multiplies by `scale` what the class adds to the prediction of the next token (`generate` with
    `guidance_scale`). Here the prediction that is fitted to the images has 1 / `scale` of what the class adds to the
    model's own: where that fits best, the model's own prediction is the guided one (Chen et al. 2025, "Visual
    Generation Without Guidance", with beta = 1 / scale). The prediction of any class is taken as it is:
    it learns from the images with class dropout alone, by their plain likelihood.

    Args:
        model: What the Trainer trains, perhaps wrapped for several processes.
        inputs: A batch with `input_ids` (B, 1 + N).
        unwrapped: The model itself.
        scale: The guidance scale, above 1.
        token_loss: The mean NLL per token of `logits`, `labels` and `num_items_in_batch`.

    Returns:
        A function of the model's outputs and the labels (B, 1 + N), as the Trainer's `compute_loss_func`: mean nats
        per token.
    """
    ids, config = inputs["input_ids"], unwrapped.config
    with torch.no_grad():
        any_class = model(input_ids=with_start_token(ids, config), use_cache=False).logits  # (B, 1 + N, V)
    has_class = (prompt_classes(ids[:, 0], config) < config.num_labels)[:, None, None]

    def loss(outputs, labels, num_items_in_batch=None):
        less_guided = torch.lerp(any_class, outputs.logits, 1 / scale)
        logits = torch.where(has_class, less_guided, outputs.logits)
        return token_loss(logits=logits, labels=labels, num_items_in_batch=num_items_in_batch)

    return loss
