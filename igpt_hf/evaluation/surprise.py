"""Where an image surprises the model: log-likelihoods of pixels, and whether they are calibrated."""

import numpy as np
import torch
from tqdm.auto import tqdm

from ..model.input_checks import check_ids, check_whole_images, to_double


def pixel_log_likelihoods(token_log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Split the log-probability of each token among its pixels by the chain rule, in raster order within the block.

    ln p(pixel k | pixels before it in the block, blocks before) = ln of the mass of all tokens that agree with the
    block in pixels 0 to k, minus that of those that agree in pixels 0 to k - 1. Their sum is the token's own.

    Args:
        token_log_probs: ln p of every token, (..., V).
        tokens: The block's own token, (...); its bit k is pixel k.

    Returns:
        (..., log2 V), natural log.
    """
    terms, agreeing = [], token_log_probs  # (..., V): the tokens that agree so far, lowest unread bit first
    for k in range(token_log_probs.shape[-1].bit_length() - 1):
        mass = agreeing.logsumexp(-1)
        by_bit = agreeing.unflatten(-1, (-1, 2))  # (..., V / 2, 2)
        bit = ((tokens >> k) & 1)[..., None, None].expand(*by_bit.shape[:-1], 1)
        agreeing = by_bit.gather(-1, bit).squeeze(-1)
        terms.append(agreeing.logsumexp(-1) - mass)
    return torch.stack(terms, dim=-1)


@torch.no_grad()
def surprise_maps(model, input_ids: torch.Tensor, batch_size: int = 128) -> dict[str, np.ndarray]:
    """Compute the nats of each token and each pixel, given the prompt and all that comes before, on the first grid.

    Args:
        model: An `IGPTForCausalImageModeling`.
        input_ids: (n, 1 + N); their prompts condition the model.
        batch_size: Images at a time.

    Returns:
        `tokens` (n, grid, grid) and `pixels` (n, height, width): -ln p, exact, so that each map sums to the nats of
        `token_log_likelihoods`, which are those of `log_likelihood` unless the model knows several grids; `white`
        (n, height, width): the probability that the pixel is white, given what comes before.

    Raises:
        ValueError: Ids that are not one prompt and the tokens of one image.
    """
    check_whole_images(input_ids, model.config)
    check_ids(input_ids, model.config)
    grid, patch = model.config.grid_size, model.config.patch_size
    token_maps, pixel_maps, white_maps = [], [], []

    def as_image(bits: torch.Tensor) -> np.ndarray:  # (B, N, patch**2) -> (B, height, width)
        blocks = bits.view(-1, grid, grid, patch, patch).transpose(2, 3)
        return blocks.reshape(-1, grid * patch, grid * patch).cpu().numpy()

    for chunk in tqdm(input_ids.split(batch_size), desc="Surprise", unit="batch", delay=2, disable=None):
        chunk = chunk.to(model.device, torch.long)
        tokens = chunk[:, 1:]
        log_probs = to_double(model(input_ids=chunk[:, :-1], use_cache=False).logits).log_softmax(-1)  # (B, N, V)
        tokens = tokens.to(log_probs.device)
        log_p = pixel_log_likelihoods(log_probs, tokens)  # (B, N, patch**2)
        is_white = (tokens[..., None] >> torch.arange(patch**2, device=tokens.device)) & 1
        pixel_maps.append(as_image(-log_p))
        white_maps.append(as_image(torch.where(is_white == 1, log_p.exp(), -log_p.expm1())))
        own = log_probs.gather(-1, tokens[..., None]).view(-1, grid, grid)
        token_maps.append(-own.cpu().numpy())
    maps = {"tokens": token_maps, "pixels": pixel_maps, "white": white_maps}
    return {name: np.concatenate(parts) for name, parts in maps.items()}


def calibration(white: np.ndarray, pixels: np.ndarray, num_bins: int = 20) -> dict:
    """Compare the probabilities of white pixels with how often the pixels are white.

    Args:
        white: Probability of white, any shape.
        pixels: 0 and 1, same shape.
        num_bins: Bins of equal width in the probability.

    Returns:
        Per bin that is not empty: `predicted` (mean probability), `observed` (fraction of white), `count`; and
        `calibration_error`, the mean over all pixels of |predicted - observed| of their bin (Naeini et al. 2015).
    """
    white, pixels = white.ravel(), pixels.ravel()
    bins = np.minimum((white * num_bins).astype(int), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    used = count > 0
    predicted = np.bincount(bins, white, num_bins)[used] / count[used]
    observed = np.bincount(bins, pixels, num_bins)[used] / count[used]
    error = np.abs(predicted - observed) @ count[used] / count.sum()
    return {
        "calibration_error": float(error),
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
        "count": count[used].tolist(),
    }
