"""How surprised a model is by each pixel of an image."""

import torch

from .modeling_igpt import IGPTForCausalImageModeling


@torch.no_grad()
def pixel_surprise(model: IGPTForCausalImageModeling, input_ids: torch.Tensor) -> torch.Tensor:
    """-ln p of each pixel given the prompt, all blocks before its own, and the pixels before it in its block.

    The chain rule over the bits of a token in raster order: p(bit | bits before) is the probability of all tokens that
    agree up to this bit, divided by that of all that agree up to the bit before. So the sum over the pixels of an
    image is exactly `-model.log_likelihood`.

    Args:
        input_ids: Whole images with their prompts, (n, 1 + N).

    Returns:
        Nats, float64 (n, image_size, image_size).

    Raises:
        ValueError: Ids that are not one prompt and the tokens of one image.
    """
    model._check_whole_images(input_ids)
    config = model.config
    size, grid, patch = config.image_size, config.grid_size, config.patch_size
    input_ids = input_ids.to(model.device, torch.long)
    log_probs = model(input_ids=input_ids[:, :-1], use_cache=False).logits.double().log_softmax(-1)  # (n, N, V)

    bits = torch.arange(config.vocab_size, device=model.device)[:, None] >> torch.arange(patch**2) & 1  # (V, P)
    is_same = bits == bits[input_ids[:, 1:]][:, :, None]  # (n, N, V, P)
    agrees = is_same.long().cumprod(dim=-1).bool()  # up to this bit
    log_mass = log_probs[..., None].masked_fill(~agrees, -torch.inf).logsumexp(dim=2)  # (n, N, P)
    before = torch.nn.functional.pad(log_mass[..., :-1], (1, 0))  # ln 1 = 0 before the first bit
    blocks = (before - log_mass).view(-1, grid, grid, patch, patch)
    return blocks.transpose(2, 3).reshape(-1, size, size)


__all__ = ["pixel_surprise"]
