"""Sampling of whole images on the CPU, compiled by numba: all steps of the model with no Python between them.

`sample_images(model, prompts)` draws from the distribution that `model.generate` draws from, hundreds of times faster
where a model is so small that the library's loop is nearly all overhead.

Position t knows the tokens before token t. It goes through the layers and yields the probabilities of token t:

    x = embeddings of the neighbours, the prompt and the position; then, in each layer,
    query, key, value = W rms(x) + b           key and value are kept for the positions to come
    x = x + W (attention + mixing) + b         attention reads positions j <= t, mixing the neighbours
    x = x + W act(W rms(x) + b) + b

How it becomes fast:

* A thread takes SLOTS sequences at a time through all steps: so few that keys and values stay in its core's own cache.
* Each inner loop is one that the compiler turns into vector instructions, on LANES = 16 numbers at once: matrices are
  stored as (inputs, outputs), and `linear` runs along the outputs; keys and values are stored as (channel, position),
  and attention runs along the positions. Sizes are padded with zeros to multiples of LANES.
* Helpers get an array and a row, not a view of the row: numba counts the references to each view, which is slow.

An image's tokens follow from its prompt and its own row of random numbers by a fixed order of operations: they depend
neither on the number of threads nor on the other images.
"""

import functools
import logging
import math
import threading

import numpy as np
import torch
from torch import nn

from .attention_igpt import LANES, MINUS_INFINITY, compile_kernel, exp2, inlined, is_kernel_usable, numba, run_tasks
from .neighborhood_igpt import neighbor_index


SLOTS = 2  # even: with guidance an image takes two
MAX_HIDDEN_SIZE, MAX_VOCAB_SIZE = 128, 512  # beyond, torch's matrix products win, and the sort in `pick` is slow
SLOPES = {"quick_gelu": 1.702, "silu": 1.0, "swish": 1.0, "gelu": 0.0}  # act(x) = x sigmoid(slope x); 0: exact GELU
DEFAULTS = (1.0, 0, 1.0, 0.0, 1.0)  # temperature, top_k, top_p, min_p, guidance_scale
LOG2_E = math.log2(math.e)
float32, int32 = np.float32, np.int32
logger = logging.getLogger(__name__)


def helper(function, fastmath=False):
    """Marks what numba compiles by itself, for the kernel to call."""
    return function if numba is None else numba.njit(error_model="numpy", fastmath=fastmath)(function)


# Leaves the compiler free to add in any order, without which it makes no sums of vectors.
reduction = functools.partial(helper, fastmath={"reassoc", "contract", "nsz"})


@reduction
def dot(a, row_a, b, row_b, length):
    total = float32(0)
    for i in range(length):
        total += a[row_a, i] * b[row_b, i]
    return total


@reduction
def row_sum(a, row, length):
    total = float32(0)
    for i in range(length):
        total += a[row, i]
    return total


@reduction
def row_maximum(bits, row, length):
    """Maximum of float32 numbers given by their bits, as the compiler makes vector maxima of integers only."""
    highest = int32(-(2**31))
    for i in range(length):
        x = bits[row, i]
        highest = max(highest, int32(x ^ ((x >> int32(31)) & int32(2**31 - 1))))  # ordered like the numbers
    return int32(highest ^ ((highest >> int32(31)) & int32(2**31 - 1))).view(float32)


@inlined
def linear(x, slot, weight, bias, layer, out, inputs, outputs, residual):
    """out[slot] = bias[layer] + x[slot] weight[layer], plus what out[slot] was if `residual`.

    16 inputs at a time, in four sums: in one, each multiply-add would wait for the one before.
    """
    for first in range(0, inputs, 16):
        for o in range(outputs):
            s0 = s1 = s2 = s3 = float32(0)
            if first == 0:
                s1 = bias[layer, o]
            if residual or first > 0:
                s0 = out[slot, o]
            for i in range(first, first + 16, 4):
                s0 += x[slot, i] * weight[layer, i * outputs + o]
                s1 += x[slot, i + 1] * weight[layer, (i + 1) * outputs + o]
                s2 += x[slot, i + 2] * weight[layer, (i + 2) * outputs + o]
                s3 += x[slot, i + 3] * weight[layer, (i + 3) * outputs + o]
            out[slot, o] = (s0 + s1) + (s2 + s3)


@inlined
def normalize(x, slot, out, channels, size, eps):
    """out[slot] = x[slot] / rms(x[slot]), where the first `size` of the channels are real and the others zero."""
    scale = float32(1) / np.sqrt(dot(x, slot, x, slot, channels) * float32(1 / size) + float32(eps))
    for c in range(channels):
        out[slot, c] = x[slot, c] * scale


@inlined
def activate(x, slot, channels, slope):
    """x[slot] = act(x[slot])"""
    for i in range(channels):
        z = x[slot, i]
        if slope > 0:
            e = exp2(-abs(z) * float32(slope * LOG2_E))
            x[slot, i] = z * (float32(1) if z >= 0 else e) / (float32(1) + e)
        else:  # z times the normal distribution function, by Abramowitz & Stegun 7.1.26: to an error of 1e-7 |z|
            t = float32(1) / (float32(1) + float32(0.3275911 * 0.5**0.5) * abs(z))
            p = float32(0.5 * 1.061405429)
            p = p * t - float32(0.5 * 1.453152027)
            p = p * t + float32(0.5 * 1.421413741)
            p = p * t - float32(0.5 * 0.284496736)
            p = p * t + float32(0.5 * 0.254829592)
            tail = p * t * exp2(z * z * float32(-0.5 * LOG2_E))
            x[slot, i] = z * (float32(1) - tail if z >= 0 else tail)


@inlined
def attend(query, slot, keys, values, first, mask, scores, bits, end, mixed, heads, size):
    """mixed[slot] = attention of query[slot] to positions up to `end`; `first` is the row of the slot's first channel.

    Scores are in base 2, since exp2 is cheap. What the mask hides gets the probability 0.
    """
    for head in range(heads):
        channel, row = head * size, slot * heads + head
        for j in range(end):
            score = mask[j]
            for d in range(size):
                score += query[slot, channel + d] * keys[first + channel + d, j]
            scores[row, j] = score
        highest = row_maximum(bits, row, end)
        for j in range(end):
            scores[row, j] = exp2(scores[row, j] - highest)
        factor = float32(1) / row_sum(scores, row, end)
        for d in range(size):
            mixed[slot, channel + d] = factor * dot(scores, row, values, first + channel + d, end)


@inlined
def exponentials(scores, out):
    """out[v] = exp(scores[v] - highest) -> (sum of out, log of the sum of exp(scores))"""
    highest, total = scores[0], 0.0
    for v in range(1, len(out)):
        highest = max(highest, scores[v])
    for v in range(len(out)):
        out[v] = exp2((scores[v] - highest) * float32(LOG2_E))
        total += out[v]
    return total, float32(highest + np.log(total))


@helper
def pick(scores, uniform, settings, order, weights):
    """Choose a token by its score, as the library's logits processors and a draw do; overwrites the scores (V,).

    Args:
        uniform: In [0, 1); chosen is the first token at which the sum of the probabilities is larger.
        settings: temperature (0: no draw, the first of the highest scores), top_k (0: all), top_p, min_p, and more.
        order, weights: Room for V numbers each.
    """
    temperature, top_k, top_p, min_p, _ = settings
    vocab = len(scores)
    if temperature == 0:
        return np.argmax(scores)
    for v in range(vocab):
        scores[v] /= float32(temperature)
    total, _ = exponentials(scores, weights)
    if 0 < top_k < vocab or top_p < 1:
        for v in range(vocab):  # insertion sort: order[0] is the token of the lowest score
            i = v
            while i > 0 and scores[order[i - 1]] > scores[v]:
                order[i] = order[i - 1]
                i -= 1
            order[i] = v
        lowest = scores[order[vocab - int(top_k)]] if 0 < top_k < vocab else MINUS_INFINITY
        total, cumulative = 0.0, 0.0
        for v in range(vocab):
            if scores[v] < lowest:  # all that equal the k-th stay
                weights[v] = 0
            total += weights[v]
        for v in order[:-1]:  # the likeliest stays in any case
            cumulative += weights[v]
            if cumulative <= (1 - top_p) * total:
                weights[v] = 0
    total = 0.0
    for v in range(vocab):
        if weights[v] < min_p:  # the highest weight is 1
            weights[v] = 0
        total += weights[v]
    token, cumulative = 0, 0.0
    for v in range(vocab):
        if weights[v] > 0 and cumulative <= uniform * total:
            token = v
            cumulative += weights[v]
    return token


def padded(size):
    return -(-size // LANES) * LANES


@functools.cache
def make_kernel(length, hidden_size, heads, inner_size, vocab, slope, eps):
    """Compile the kernel for one shape of models: the more is constant, the better the compiler's code."""
    width, inner, outputs, longest = (padded(n) for n in (hidden_size, inner_size, vocab, length))
    size = hidden_size // heads

    def kernel(parameters, neighbors, first_rows, start_token, ids, given, noise, settings, log_probs, first, last):
        """Complete images `first` to `last` - 1.

        Args:
            parameters, neighbors, first_rows: From `gather_weights`.
            ids: Prompts and tokens (B, 1 + N); all tokens after the first `given` are filled in.
            noise: (B, N - given), for `pick`.
            settings: temperature, top_k, top_p, min_p, guidance_scale.
            log_probs: Filled in with what the model, without any of the settings, gives each token (B, N).
        """
        context, position, qkv, qkv_bias, out, out_bias, up, up_bias, down, down_bias, mixing, head = parameters
        guidance = float32(settings[4])
        branches = 1 if guidance == 1 else 2  # with guidance: an image with its prompt, and with the start token
        slots = min(SLOTS, branches * (last - first))
        length, layers = len(position), len(qkv)
        longest = (length + LANES - 1) // LANES * LANES
        channels = position.shape[1]  # `width`, but not as a constant: short loops would be unrolled, not vectorised

        # Not `a, b = np.zeros((2, ...))`: those would not be known to be contiguous, and not be vectorised.
        keys = np.zeros((layers * slots * width, longest), float32)  # a row for each layer, slot and channel
        values = np.zeros((layers * slots * width, longest), float32)
        value_rows = np.zeros((layers * slots, length * width), float32)  # the values again, channels side by side
        scores, mask = np.zeros((slots * heads, longest), float32), np.empty(longest, float32)
        bits = scores.view(np.int32)
        x, normed = np.zeros((slots, width), float32), np.zeros((slots, width), float32)
        projected, mixed = np.zeros((slots, 3 * width), float32), np.zeros((slots, width), float32)
        hidden, logits = np.zeros((slots, inner), float32), np.zeros((slots, outputs), float32)
        no_bias, chances, weights = np.zeros((1, outputs), float32), np.zeros(vocab, float32), np.zeros(vocab, float32)
        order = np.zeros(vocab, np.int64)

        for start in range(first, last, slots // branches):
            active = min(slots, branches * (last - start))
            mask[:] = MINUS_INFINITY
            for t in range(length):
                mask[t] = 0
                end = t // LANES * LANES + LANES  # a multiple of LANES: no loop has a rest
                for slot in range(active):
                    image = start + slot // branches
                    row = first_rows[-1] + (ids[image, 0] if slot % branches == 0 else start_token)
                    for c in range(channels):
                        x[slot, c] = position[t, c] + context[row, c]
                    for k in range(neighbors.shape[2]):
                        place = neighbors[0, t, k]
                        row = first_rows[k] + (ids[image, place] if place > 0 else vocab)
                        for c in range(channels):
                            x[slot, c] += context[row, c]

                for layer in range(layers):
                    for slot in range(active):
                        cache = layer * slots + slot
                        normalize(x, slot, normed, channels, hidden_size, eps)
                        linear(normed, slot, qkv, qkv_bias, layer, projected, width, 3 * width, False)
                        for c in range(width):
                            keys[cache * width + c, t] = projected[slot, width + c]
                            values[cache * width + c, t] = projected[slot, 2 * width + c]
                        for c in range(channels):
                            value_rows[cache, t * width + c] = projected[slot, 2 * width + c]
                    for slot in range(active):
                        cache = layer * slots + slot
                        row = cache * width
                        attend(projected, slot, keys, values, row, mask, scores, bits, end, mixed, heads, size)
                        for k in range(neighbors.shape[2]):
                            place = neighbors[1, t, k] * width
                            if place > 0:
                                for c in range(channels):
                                    mixed[slot, c] += mixing[layer, k * width + c] * value_rows[cache, place + c]
                    for slot in range(active):
                        linear(mixed, slot, out, out_bias, layer, x, width, width, True)
                        normalize(x, slot, normed, channels, hidden_size, eps)
                        linear(normed, slot, up, up_bias, layer, hidden, width, inner, False)
                        activate(hidden, slot, inner, slope)
                        linear(hidden, slot, down, down_bias, layer, x, inner, width, True)

                for slot in range(active):
                    normalize(x, slot, normed, channels, hidden_size, eps)
                    linear(normed, slot, head, no_bias, 0, logits, width, outputs, False)
                for slot in range(0, active, branches):
                    image = start + slot // branches
                    _, log_norm = exponentials(logits[slot], weights)
                    for v in range(vocab):
                        chances[v] = logits[slot, v] - log_norm
                    if branches == 2:
                        _, log_norm2 = exponentials(logits[slot + 1], weights)
                        for v in range(vocab):
                            unconditional = logits[slot + 1, v] - log_norm2
                            chances[v] = unconditional + guidance * (chances[v] - unconditional)
                    if t >= given:
                        ids[image, t + 1] = pick(chances, noise[image, t - given], settings, order, weights)
                    log_probs[image, t] = logits[slot, ids[image, t + 1]] - log_norm

    number, table, numbers = numba.int64, numba.int64[:, ::1], numba.float64[:, ::1]
    parameters, settings = numba.types.UniTuple(numba.float32[:, ::1], 12), numba.types.UniTuple(numba.float64, 5)
    places = numba.int64[:, :, ::1]
    signature = (parameters, places, number[::1], number, table, number, numbers, settings, numbers, number, number)
    message = "compiling the sampler for this shape of models; it is kept on disk, so only once"
    timer = threading.Timer(2, logger.warning, [message])  # loading from disk does not take that long
    timer.start()
    try:
        return compile_kernel(kernel, signature)
    finally:
        timer.cancel()


@torch.no_grad()
def gather_weights(model):
    """The model's weights as the kernel takes them: 12 matrices, the neighbours' places, first rows (K + 1,).

    The places (2, N, K) are those that the embeddings read and those that the mixing reads; 0 is outside.

    The matrices of the layers have one row for each layer: (inputs, outputs), flattened.
    """
    config, embeddings, layers = model.config, model.model.embeddings, model.model.layers
    positions = torch.arange(config.num_image_tokens)
    tables = [neighbor_index(positions, config, wraps) for wraps in (True, False)]
    neighbors = torch.stack([torch.where(is_inside, places, 0) for places, is_inside in tables])
    size, num_neighbors = config.hidden_size, neighbors.shape[2]
    width, inner, outputs = padded(size), padded(config.intermediate_size), padded(config.vocab_size)

    def fit(matrix, *shape):  # zeros appended up to (rows, *shape), then flattened
        padding = [p for have, want in zip(matrix.shape[:0:-1], shape[::-1], strict=True) for p in (0, want - have)]
        return nn.functional.pad(matrix, padding).flatten(1).numpy()

    attentions, mlps = [layer.attention for layer in layers], [layer.mlp for layer in layers]
    # The weight of a norm scales the inputs of the matrix after it; the query is scaled as its scores are to be.
    scale = torch.tensor([(size // config.num_attention_heads) ** -0.5 * LOG2_E, 1, 1])[:, None]
    norms = torch.stack([layer.attention_norm.weight for layer in layers])[:, None, None]
    qkv = torch.stack([x.qkv_proj.weight for x in attentions]).view(-1, 3, size, size) * norms * scale[..., None]
    qkv_bias = torch.stack([x.qkv_proj.bias for x in attentions]).view(-1, 3, size) * scale
    norms = torch.stack([layer.mlp_norm.weight for layer in layers])[:, None]
    up = torch.stack([x.up_proj.weight for x in mlps]) * norms
    mixing = qkv.new_zeros(len(layers), size, num_neighbors)
    if attentions[0].local_mixing is not None:
        mixing = torch.stack([x.local_mixing.weight for x in attentions])
    parameters = (
        fit(embeddings.context.weight, width),
        fit(embeddings.position.weight[: config.num_image_tokens], width),
        fit(qkv.permute(0, 3, 1, 2), width, 3, width),
        fit(qkv_bias, 3, width),
        fit(torch.stack([x.out_proj.weight for x in attentions]).mT, width, width),
        fit(torch.stack([x.out_proj.bias for x in attentions]), width),
        fit(up.mT, width, inner),
        fit(torch.stack([x.up_proj.bias for x in mlps]), inner),
        fit(torch.stack([x.down_proj.weight for x in mlps]).mT, inner, width),
        fit(torch.stack([x.down_proj.bias for x in mlps]), width),
        fit(mixing.mT, num_neighbors, width),
        fit((model.lm_head.weight * model.model.norm.weight).T[None], width, outputs),
    )
    return parameters, neighbors.numpy(), np.array(embeddings.first_rows)


def is_sampler_usable(model) -> bool:
    """Whether `sample_images` can take this model: numba is here, and the model small and nothing but itself."""
    config = model.config
    return (
        is_kernel_usable()
        and config.hidden_size <= MAX_HIDDEN_SIZE
        and config.vocab_size <= MAX_VOCAB_SIZE
        and config.hidden_act in SLOPES
        and not (model.training and config.attention_dropout)
        and all(is_plain(module) for module in model.modules())
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a module has its own weights, float32 on the CPU, and no hook or wrapper changes what it does."""
    weights = [x for x in module._parameters.values() if x is not None]
    return (
        not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        and (not weights or type(module) in (nn.Linear, nn.Embedding) or type(module).__name__.startswith("IGPT"))
        and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in weights)
    )


def sample_images(
    model,
    input_ids: torch.Tensor,
    *,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    guidance_scale: float = 1.0,
    noise: torch.Tensor | None = None,
    return_log_probs: bool = False,
):
    """Sample images: prompts and given tokens (B, 1 + given) -> (B, 1 + N), int64.

    The settings have the meaning that they have for the library's `generate`. All randomness is one draw from torch's
    generator of the CPU: `torch.manual_seed` makes samples repeatable, and the first of a larger batch are the same.

    Args:
        noise: Uniform numbers in [0, 1) instead of that draw, float64 (B, N - given).
        return_log_probs: Return also the log-probability of each token by the model as it is, float64 (B, N).

    Raises:
        ValueError: Ids out of range, a prompt that is a whole image, or a temperature that is not positive.
        RuntimeError: Probabilities that are not numbers, because some weights are not.
    """
    model._check_prompt(input_ids)
    if do_sample and temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; do_sample=False takes the likeliest.")
    config, batch, given = model.config, len(input_ids), input_ids.shape[1] - 1
    steps = config.num_image_tokens - given
    if noise is None:
        noise = (torch.rand if do_sample else torch.zeros)(batch, steps, dtype=torch.float64)
    settings = (temperature if do_sample else 0.0, top_k, top_p, min_p, guidance_scale)
    settings = tuple(float(default if x is None else x) for x, default in zip(settings, DEFAULTS, strict=True))
    ids = nn.functional.pad(input_ids.long(), (0, steps)).contiguous()
    log_probs = torch.empty(batch, config.num_image_tokens, dtype=torch.float64)

    sizes = (config.num_image_tokens, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    kernel = make_kernel(*sizes, config.vocab_size, SLOPES[config.hidden_act], config.rms_norm_eps)
    arguments = (config.start_token_id, ids.numpy(), given, noise.numpy(), settings, log_probs.numpy())
    run_tasks(functools.partial(kernel, *gather_weights(model), *arguments), (), batch)
    if log_probs.isnan().any():
        raise RuntimeError("The probabilities of the next token are not numbers: some weights are not.")
    return (ids, log_probs) if return_log_probs else ids


__all__ = ["is_sampler_usable", "sample_images"]
