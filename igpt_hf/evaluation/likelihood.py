"""Exact likelihoods of a data set under a model, with everything that makes them comparable with published numbers."""

import io
import math

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..errors import DataError


def likelihoods(model, input_ids: torch.Tensor, batch_size: int = 128) -> dict[str, torch.Tensor]:
    """Compute exact log-likelihoods of images under every prompt, in natural log, float64.

    Args:
        model: An `IGPTForCausalImageModeling`.
        input_ids: (n, 1 + N); their prompts do not matter.
        batch_size: Images at a time.

    Returns:
        `classes`: ln p(image | class), (n, num_labels); `start`: ln p(image | start token), (n,).
    """
    classes, start = [], []
    for chunk in tqdm(input_ids.split(batch_size), desc="Likelihood", unit="batch", delay=2):
        classes.append(model.class_log_likelihoods(chunk, batch_size).cpu())
        prompt = torch.full_like(chunk[:, :1], model.config.start_token_id)
        start.append(model.log_likelihood(torch.cat([prompt, chunk[:, 1:]], dim=1), batch_size).cpu())
    return {"classes": torch.cat(classes), "start": torch.cat(start)}


def likelihood_report(scores: dict[str, torch.Tensor], labels: torch.Tensor, prior: torch.Tensor, num_pixels: int):
    """Summarise `likelihoods`: means in nats per image, with their standard errors where it matters.

    * `nats_per_image`: -ln p(image | its class).
    * `nats_per_image_marginal`: -ln sum over classes of p(class) p(image | class). Exact, uses no label: the number to
      hold beside published ones.
    * `nats_per_image_unconditional`: -ln p(image | start token).
    * `bayes_accuracy`: share of images whose class has the highest posterior, p(class) p(image | class);
      `confusion_matrix`: how many images of each class (row) have it where (column). Both are None where the prior
      has one class only, since then nothing is told apart.

    Args:
        scores: From `likelihoods`.
        labels: Class of each image, (n,).
        prior: p(class), (num_labels,).
        num_pixels: Of an image, for bits per pixel.

    Raises:
        DataError: No images.
    """
    if len(labels) == 0:
        raise DataError("there are no images to evaluate: the split is empty. Choose another --split or data.")
    told = -scores["classes"].gather(1, labels[:, None]).squeeze(1)  # (n,)
    joint = scores["classes"] + prior.double().log()  # (n, num_labels)
    marginal, start = -joint.logsumexp(dim=1), -scores["start"]
    report = {"num_images": len(labels)}
    for name, nats in (("", told), ("_marginal", marginal), ("_unconditional", start)):
        report[f"nats_per_image{name}"] = nats.mean().item()
        report[f"nats_per_image{name}_stderr"] = (nats.std() / math.sqrt(len(nats))).item() if len(nats) > 1 else 0.0
    report["bits_per_pixel"] = report["nats_per_image"] / (num_pixels * math.log(2))
    report |= {"bayes_accuracy": None, "confusion_matrix": None}
    if (prior > 0).sum() > 1:
        predicted = joint.argmax(dim=1)
        report["bayes_accuracy"] = (predicted == labels).double().mean().item()
        pairs = torch.bincount(labels * len(prior) + predicted, minlength=len(prior) ** 2)
        report["confusion_matrix"] = pairs.view(len(prior), len(prior)).tolist()
    report["nats_per_class"] = {
        label: told[labels == label].mean().item() for label in range(len(prior)) if (labels == label).any()
    }
    return report


# --- surprise -------------------------------------------------------------------------------------------------------


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
    """Compute the nats that each token and each pixel costs, given the prompt and all that comes before.

    Args:
        model: An `IGPTForCausalImageModeling`.
        input_ids: (n, 1 + N), with the prompt that is to be told.
        batch_size: Images at a time.

    Returns:
        `tokens` (n, grid, grid) and `pixels` (n, height, width): -ln p, exact, so that each map sums to the nats of
        the image; `white` (n, height, width): the probability that the pixel is white, given what comes before.

    Raises:
        ValueError: Ids that are not one prompt and the tokens of one image.
    """
    model._check_whole_images(input_ids)
    grid, patch = model.config.grid_size, model.config.patch_size
    token_maps, pixel_maps, white_maps = [], [], []

    def as_image(bits: torch.Tensor) -> np.ndarray:  # (B, N, patch**2) -> (B, height, width)
        blocks = bits.view(-1, grid, grid, patch, patch).transpose(2, 3)
        return blocks.reshape(-1, grid * patch, grid * patch).cpu().numpy()

    for chunk in tqdm(input_ids.split(batch_size), desc="Surprise", unit="batch", delay=2):
        chunk = chunk.to(model.device, torch.long)
        tokens = chunk[:, 1:]
        log_probs = model(input_ids=chunk[:, :-1], use_cache=False).logits.double().log_softmax(-1)  # (B, N, V)
        log_p = pixel_log_likelihoods(log_probs, tokens)  # (B, N, patch**2)
        is_white = (tokens[..., None] >> torch.arange(patch**2, device=tokens.device)) & 1
        pixel_maps.append(as_image(-log_p))
        white_maps.append(as_image(torch.where(is_white == 1, log_p.exp(), -log_p.expm1())))
        own = log_probs.gather(-1, tokens[..., None]).view(-1, grid, grid)
        token_maps.append(-own.cpu().numpy())
    return {name: np.concatenate(maps) for name, maps in
            (("tokens", token_maps), ("pixels", pixel_maps), ("white", white_maps))}  # fmt: skip


def calibration(white: np.ndarray, pixels: np.ndarray, num_bins: int = 20) -> dict:
    """Compare the probabilities of white pixels with how often the pixels are white.

    Args:
        white: Probability of white, any shape.
        pixels: 0 and 1, same shape.
        num_bins: Bins of equal width in the probability.

    Returns:
        Per bin that is not empty: `predicted` (mean probability), `observed` (share of white), `count`; and
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


# --- codecs ---------------------------------------------------------------------------------------------------------

CODECS = {
    "png": {"format": "PNG", "optimize": True},
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 5},
    "group4_tiff": {"format": "TIFF", "compression": "group4"},
}
SHEET_ROWS = 14_000  # of pixels in one file, 500 images of 28 rows; WebP allows 16,383


def codec_bits(pixels: np.ndarray) -> dict[str, dict[str, float]]:
    """Measure lossless codecs on the same images, in bits per image.

    Args:
        pixels: (n, height, width) of 0/1.

    Returns:
        Per codec `alone`, one file per image, headers included, and `in_sheets`, the images stacked in files of up to
        14,000 rows, where the header weighs nothing and the codec can learn from the images above.
    """
    num, height, width = pixels.shape
    count = max(1, SHEET_ROWS // height)
    sheets = [pixels[i : i + count].reshape(-1, width) for i in range(0, num, count)]
    bits = {}
    for codec in tqdm(CODECS, desc="Codecs", delay=2):
        alone, in_sheets = codec_sizes(pixels, codec).sum(), codec_sizes(sheets, codec).sum()
        bits[codec] = {"alone": 8 * alone / num, "in_sheets": 8 * in_sheets / num}
    return bits


def codec_sizes(images, codec: str) -> np.ndarray:
    """Bytes of each of n black and white images, (height, width) of 0/1, in a file of its own: (n,)."""
    sizes = []
    for pixels in images:
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(bool)).save(buffer, **CODECS[codec])  # mode "1"
        sizes.append(len(buffer.getvalue()))
    return np.array(sizes)


# --- checks ---------------------------------------------------------------------------------------------------------


def labels_as_in_model(names: list[str], config) -> list[int]:
    """Class index in the model of each class of a data set, by name.

    Raises:
        DataError: A class that the model does not know.
    """
    known = {str(name): index for index, name in config.id2label.items()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"the data has classes that the model does not know ({', '.join(unknown)}); it knows {', '.join(known)}."
        )
    return [known[name] for name in names]


def check_data(split, config, is_size_free: bool) -> list[int]:
    """Check that a data set, by its training split, fits a model; returns the model's class index of each class.

    Raises:
        DataError: Classes that the model does not know or, unless `is_size_free`, pictures all of one size other than
            the model's.
    """
    index = labels_as_in_model(split.features["label"].names, config)
    if not is_size_free:
        check_image_size(split["image"], config.image_size)
    return index


def check_two_classes(split):
    """Refuse a split, with a `label` column, that shows fewer than two classes, before something tells them apart.

    Raises:
        DataError: The split is empty or has one class only.
    """
    present = sorted(set(split["label"][:]))
    if len(present) < 2:
        what = split.features["label"].int2str(present[0]) if present else "none at all: it is empty"
        raise DataError(f"the data has one class only ({what}): there is nothing to tell apart. Give two or more.")


def check_image_size(images, image_size: int):
    """Refuse pictures that all have one size (the first hundred are looked at) which is not the model's.

    Raises:
        DataError: The pictures would be fitted into the model's size, so that other images were scored than given.
    """
    sizes = {picture.size for picture in images[:100]}
    if len(sizes) == 1 and sizes != {(image_size, image_size)}:
        width, height = sizes.pop()
        raise DataError(
            f"the pictures are {width}x{height}, the model's are {image_size}x{image_size}. Score them with a model "
            "of their size, or pass --resize to fit them to the model's, as training does."
        )


__all__ = [
    "calibration",
    "check_data",
    "check_image_size",
    "check_two_classes",
    "codec_bits",
    "codec_sizes",
    "labels_as_in_model",
    "likelihood_report",
    "likelihoods",
    "pixel_log_likelihoods",
    "surprise_maps",
]
