"""The choice of a token by its logits, for the kernels of kernel_sampling.py: softmax, filters, one random number."""

import numpy as np

from .kernel_blocks import LOG2_E
from .kernel_simd import LANES, exp2, fma, kernel, load_flat, maximum, reduce_max, splat, store_flat, total, up_to_lane


@kernel
def exponentiate_logits(logits, start, vocab, weights):
    """weights = exp(logits[start:] - their maximum), 0 in the padding (padded V,); returns maximum + log(sum)."""
    largest = splat(-np.inf)
    for v in range(0, vocab, LANES):
        x = up_to_lane(vocab - 1 - v, load_flat(logits, start + v), -np.inf)
        store_flat(weights, v, x)
        largest = maximum(largest, x)
    highest, norm, nothing = reduce_max(largest), splat(0), splat(0)
    for v in range(0, vocab, LANES):
        e = exp2((load_flat(weights, v) - splat(highest)) * splat(LOG2_E))
        store_flat(weights, v, e)
        norm += e
        nothing = fma(
            load_flat(logits, start + v), 0, nothing
        )  # NaN if a logit is NaN or infinite, which e does not show
    return highest + np.log(np.float64(total(norm + nothing)))


@kernel
def draw_token(weights, vocab, uniform):
    """The first token at which the cumulative sum of the weights exceeds `uniform`, in [0, 1), times their sum."""
    mass, token, cumulative = 0.0, 0, 0.0
    for v in range(vocab):
        mass += weights[v]
    for v in range(vocab):
        if weights[v] > 0 and cumulative <= uniform * mass:
            token = v
            cumulative += weights[v]
    return token


@kernel
def sample_token(scores, uniform, settings, order, weights):
    """Sample a token by its score, as transformers' logits processors and sampling do; overwrites the scores (V,).

    Args:
        uniform: In [0, 1); the first token at which the cumulative probability is larger is chosen.
        settings: temperature (0: the first of the highest scores), top_k (0: all), top_p, min_p, and more.
        order, weights: Work space of V numbers each.
    """
    temperature, top_k, top_p, min_p, _ = settings
    vocab, best = len(scores), 0
    for v in range(vocab):
        if scores[v] > scores[best]:
            best = v
    if temperature == 0:
        return best
    largest = scores[best] / temperature
    for v in range(vocab):
        scores[v] /= temperature
        weights[v] = np.exp(scores[v] - largest)
    if 0 < top_k < vocab or top_p < 1:
        for v in range(vocab):  # insertion sort: order[0] is the token of the lowest score
            i = v
            while i > 0 and scores[order[i - 1]] > scores[v]:
                order[i] = order[i - 1]
                i -= 1
            order[i] = v
        lowest = scores[order[vocab - int(top_k)]] if 0 < top_k < vocab else -np.inf
        mass, cumulative = 0.0, 0.0
        for v in range(vocab):
            if scores[v] < lowest:  # all that equal the k-th stay
                weights[v] = 0
            mass += weights[v]
        for i in range(vocab - 1):  # the most likely always stays
            cumulative += weights[order[i]]
            if cumulative <= (1 - top_p) * mass:
                weights[order[i]] = 0
    for v in range(vocab):
        if weights[v] < min_p:  # the highest weight is 1
            weights[v] = 0
    return draw_token(weights, vocab, uniform)
