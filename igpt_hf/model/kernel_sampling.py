"""Decoding on the CPU, compiled by numba: one position after the other, with no Python between a step's operations.

`complete_images` samples whole images, with no Python between the steps either: from the same distribution as
transformers' `generate`, thousands of times faster where a model is so small that transformers' loop is nearly all
overhead. `extend_sequences` does one step, or several, for a `Decoder`, which keeps the keys and values.

Position t knows the tokens before token t. It goes through the layers and yields the probabilities of token t:

    x = embeddings of the neighbors, the prompt and the position; then, in each layer,
    query, key, value = W (rms(x) gain) + b    query and key are rotated, key and value kept for later positions
    x = x + W (attention + mixing) + b         attention reads positions j <= t, mixing the neighbors
    x = x + W act(W (rms(x) gain) + b) + b

Why it is fast: SLOTS sequences go through all their steps together before the next ones begin: few enough that their
keys and values stay in a core's own cache, and enough that the processor need not wait for one sequence's results. A
vector register holds LANES numbers side by side: channels of the result in `linear_row`, positions in `attend_row`,
for which keys and values are stored in pages of LANES positions, as (channel, position). Sizes are padded with
zeros to multiples of LANES.

An image's tokens follow from its prompt and its own row of random numbers by a fixed order of operations: they depend
neither on the number of threads nor on the other images.
"""

import functools

import numpy as np

from .kernel_blocks import BlockWeights, activate
from .kernel_simd import (
    LANES,
    compile_kernel,
    exp2,
    fma,
    kernel,
    load,
    maximum,
    numba,
    reduce_max,
    splat,
    store,
    total,
    up_to_lane,
)


SLOTS = 4  # even: with guidance an image takes two
QKV_WEIGHT, UP_WEIGHT = (BlockWeights._fields.index(name) for name in ("qkv_weight", "up_weight"))
float32 = np.float32


@kernel
def linear_row(x, row, weight, bias, out, adds):
    """out[row] = x[row] weight + bias, plus what it was if `adds`."""
    inputs, outputs = weight.shape
    for o in range(0, outputs, LANES):
        a = load(bias, 0, o) + load(out, row, o) if adds else load(bias, 0, o)
        b = c = d = splat(0)
        for i in range(0, inputs, 4):  # four sums: in one, each multiply-add would wait for the one before
            a = fma(x[row, i], load(weight, i, o), a)
            b = fma(x[row, i + 1], load(weight, i + 1, o), b)
            c = fma(x[row, i + 2], load(weight, i + 2, o), c)
            d = fma(x[row, i + 3], load(weight, i + 3, o), d)
        store(out, row, o, (a + b) + (c + d))


@kernel
def normalize_row(x, row, size, eps, gains, gain_row, normed):
    """normed[row] = rms(x[row]) gains[gain_row], where the first `size` channels are real and the others zero."""
    squares = splat(0)
    for c in range(0, x.shape[1], LANES):
        squares = fma(load(x, row, c), load(x, row, c), squares)
    scale = splat(float32(1) / np.sqrt(total(squares) / float32(size) + eps))
    for c in range(0, x.shape[1], LANES):
        store(normed, row, c, load(x, row, c) * scale * load(gains, gain_row, c))


@kernel
def apply_rotary_row(qkv, row, cosines, sines, heads, size, channels):
    """Rotate query and key of qkv[row], from columns 0 and `channels` on, by a position's angles."""
    pairs = len(cosines)
    for part in range(2):
        for head in range(heads):
            c = part * channels + head * size
            for p in range(pairs):
                first, second = qkv[row, c + p], qkv[row, c + pairs + p]
                qkv[row, c + p] = first * cosines[p] - second * sines[p]
                qkv[row, c + pairs + p] = first * sines[p] + second * cosines[p]


@kernel
def attend_row(query, row, keys, values, firsts, t, heads, size, scores, mixed):
    """Attention of query[row] to positions up to t -> mixed[row].

    Args:
        keys, values: A row of LANES positions for each channel.
        firsts: Where the rows of each block of LANES positions begin.
    """
    last = t // LANES
    for head in range(heads):
        channel = head * size
        largest = splat(-np.inf)
        for block in range(last + 1):
            s = splat(0)
            for d in range(size):
                s = fma(query[row, channel + d], load(keys, firsts[block] + channel + d, 0), s)
            if block == last:
                s = up_to_lane(t % LANES, s, -np.inf)
            largest = maximum(largest, s)
            store(scores, block, 0, s)
        largest, norm = splat(reduce_max(largest)), splat(0)
        for block in range(last + 1):
            e = exp2(load(scores, block, 0) - largest)
            norm += e
            store(scores, block, 0, e)
        factor = float32(1) / total(norm)
        for d in range(size):
            s = splat(0)
            for block in range(last + 1):
                s = fma(load(scores, block, 0), load(values, firsts[block] + channel + d, 0), s)
            mixed[row, channel + d] = total(s) * factor


@kernel
def log_sum_exp(scores):
    """log of the sum of exp(scores)"""
    largest, result = scores.max(), 0.0
    for score in scores:
        result += np.exp(score - largest)
    return largest + np.log(result)


@kernel
def sample_token(scores, uniform, settings, order, weights):
    """Sample a token by its score, as transformers' logits processors and sampling do; overwrites the scores (V,).

    Args:
        uniform: In [0, 1); the first token at which the cumulative probability is larger is chosen.
        settings: temperature (0: the first of the highest scores), top_k (0: all), top_p, min_p, and more.
        order, weights: Work space of V numbers each.
    """
    temperature, top_k, top_p, min_p, _ = settings
    vocab = len(scores)
    if temperature == 0:
        return np.argmax(scores)
    for v in range(vocab):
        scores[v] /= temperature
    largest = scores.max()
    for v in range(vocab):
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
        for v in order[:-1]:  # the most likely always stays
            cumulative += weights[v]
            if cumulative <= (1 - top_p) * mass:
                weights[v] = 0
    mass = 0.0
    for v in range(vocab):
        if weights[v] < min_p:  # the highest weight is 1
            weights[v] = 0
        mass += weights[v]
    token, cumulative = 0, 0.0
    for v in range(vocab):
        if weights[v] > 0 and cumulative <= uniform * mass:
            token = v
            cumulative += weights[v]
    return token


@kernel
def run_position(weight_arrays, head, tables, shape, constants, sequences, caches, work, t, first, page_row, count):
    """Position t of `count` sequences: their logits -> `work`; keys and values are added to the caches.

    Args:
        weight_arrays, head, tables, shape, constants, sequences: As in `complete_images`.
        caches: Keys and values in pages of LANES positions: a row of LANES for each page, layer and channel; the
            values again, a row of channels for each page, layer and position; and each sequence's pages (S, blocks).
        work: From `work_space`.
        first: The first of the sequences; the others follow.
        page_row: The row of its pages; those of the others follow.
    """
    weights = BlockWeights(*weight_arrays)
    (places, context, cos_sin), (heads, hidden_size, _), (eps, beta) = tables, shape, constants
    (ids, rows), ((keys, values, value_rows), pages) = sequences, caches
    logits, x, normed, qkv, mixed, hidden, scores, no_bias = work
    (layers, channels, _), size = weights.qkv_weight.shape, hidden_size // heads
    firsts = np.empty(pages.shape[1], np.int64)
    for slot in range(count):
        for c in range(0, channels, LANES):
            s = load(weights.position_table[0], t, c)
            for k in range(context.shape[1]):
                place, row = context[t, k, 0], context[t, k, 1]
                if place >= 0:
                    row += ids[first + slot, place]
                s += load(weights.context_table[0], row, c)
            store(x, slot, c, s)

    for layer in range(layers):
        for slot in range(count):
            normalize_row(x, slot, hidden_size, eps, weights.attention_gain[layer], rows[first + slot], normed)
            linear_row(normed, slot, weights.qkv_weight[layer], weights.qkv_bias[layer], qkv, False)
            apply_rotary_row(qkv, slot, cos_sin[0, t], cos_sin[1, t], heads, size, channels)
        for slot in range(count):
            own = pages[page_row + slot]
            for block in range(t // LANES + 1):
                firsts[block] = (own[block] * layers + layer) * hidden_size
            row = firsts[t // LANES]
            for c in range(hidden_size):
                keys[row + c, t % LANES] = qkv[slot, channels + c]
                values[row + c, t % LANES] = qkv[slot, 2 * channels + c]
            for c in range(0, channels, LANES):
                row = (own[t // LANES] * layers + layer) * LANES + t % LANES
                store(value_rows, row, c, load(qkv, slot, 2 * channels + c))
            attend_row(qkv, slot, keys, values, firsts, t, heads, size, scores, mixed)
            for c in range(0, channels, LANES):
                s = load(mixed, slot, c)
                for k in range(weights.mixing_weight.shape[1]):
                    near = places[t, k]
                    if near > 0:
                        row = (own[near // LANES] * layers + layer) * LANES + near % LANES
                        s = fma(load(weights.mixing_weight[layer], k, c), load(value_rows, row, c), s)
                store(mixed, slot, c, s)
        for slot in range(count):
            linear_row(mixed, slot, weights.out_weight[layer], weights.out_bias[layer], x, True)
            normalize_row(x, slot, hidden_size, eps, weights.mlp_gain[layer], rows[first + slot], normed)
            linear_row(normed, slot, weights.up_weight[layer], weights.up_bias[layer], hidden, False)
        activate(hidden, beta, hidden, False)
        for slot in range(count):
            linear_row(hidden, slot, weights.down_weight[layer], weights.down_bias[layer], x, True)

    for slot in range(count):
        normalize_row(x, slot, hidden_size, eps, weights.last_gain[0], rows[first + slot], normed)
        linear_row(normed, slot, head[0], no_bias, logits, False)


@kernel
def work_space(count, channels, inner, outputs, length):
    """What `run_position` writes into, for `count` sequences; first the logits."""
    x, normed = np.zeros((count, channels), float32), np.zeros((count, channels), float32)
    qkv, mixed = np.zeros((count, 3 * channels), float32), np.zeros((count, channels), float32)
    hidden, scores = np.zeros((count, inner), float32), np.zeros(((length + LANES - 1) // LANES, LANES), float32)
    logits, no_bias = np.zeros((count, outputs), float32), np.zeros((1, outputs), float32)
    return logits, x, normed, qkv, mixed, hidden, scores, no_bias


def complete_images(
    weight_arrays, head, tables, shape, constants, sequences, given, noise, settings, log_probs, first, last
):
    """Complete images `first` to `last` - 1.

    Args:
        weight_arrays: The fields of `BlockWeights`, from `padded_weights`.
        head: Matrix of the head (1, C, V), padded.
        tables: Places of the neighbors that mixing reads, 0 outside (N, K), `context_rows`, and `rotary_cos_sin`
            (2, N, P).
        shape: Heads, hidden size and vocabulary, without padding.
        constants: eps of the norms, beta of the activation.
        sequences: Prompts and tokens (S, 1 + N), of which all after the first `given` are filled in, and the row of
            the gains for each prompt (S,). An image is one sequence; with guidance two, its own and one with the start
            token, side by side.
        noise: (B, N - given), for `sample_token`.
        settings: temperature, top_k, top_p, min_p, guidance_scale.
        log_probs: Filled in with each token's log-probability by the model, without any of the settings (B, N).
    """
    (ids, _), vocab, guidance = sequences, shape[2], settings[4]
    branches = 1 if guidance == 1 else 2
    slots = min(SLOTS, branches * (last - first))
    (layers, channels, _), length = weight_arrays[QKV_WEIGHT].shape, len(tables[0])
    blocks = (length + LANES - 1) // LANES
    rows = slots * blocks * layers * shape[1]
    keys, values = np.zeros((rows, LANES), float32), np.zeros((rows, LANES), float32)
    value_rows = np.zeros((slots * blocks * layers * LANES, channels), float32)
    caches = ((keys, values, value_rows), np.arange(slots * blocks).reshape(slots, blocks))
    work = work_space(slots, channels, weight_arrays[UP_WEIGHT].shape[2], head.shape[2], length)
    logits, chances = work[0], np.zeros((slots, vocab))
    guided, weights, order = np.zeros(vocab), np.zeros(vocab), np.zeros(vocab, np.int64)
    for start in range(first, last, slots // branches):
        active = min(slots, branches * (last - start))
        for t in range(length):
            run_position(
                weight_arrays, head, tables, shape, constants, sequences, caches, work, t, branches * start, 0, active
            )
            for slot in range(active):
                norm = log_sum_exp(logits[slot, :vocab])
                for v in range(vocab):
                    chances[slot, v] = logits[slot, v] - norm
            for slot in range(0, active, branches):
                image = start + slot // branches
                sequence = branches * image
                for v in range(vocab):
                    guided[v] = chances[slot, v]
                    if branches == 2:
                        guided[v] = chances[slot + 1, v] + guidance * (guided[v] - chances[slot + 1, v])
                if t >= given:
                    token = sample_token(guided, noise[image, t - given], settings, order, weights)
                    ids[sequence : sequence + branches, t + 1] = token
                log_probs[image, t] = chances[slot, ids[sequence, t + 1]]


def extend_sequences(
    weight_arrays, head, tables, shape, constants, sequences, caches, logits, begin, end, first, last
):
    """Run sequences `first` to `last` - 1 through positions `begin` to `end` - 1; the last one's logits -> (S, V).

    Args:
        weight_arrays, head, tables, shape, constants: As in `complete_images`.
        sequences: Prompts and tokens (S, 1 + N), known up to position `end` - 1, and the rows of the gains (S,).
        caches: As in `run_position`: keys and values of the positions before `begin`, which are added to.
    """
    channels, length = weight_arrays[QKV_WEIGHT].shape[1], len(tables[0])
    slots = min(SLOTS, last - first)
    work = work_space(slots, channels, weight_arrays[UP_WEIGHT].shape[2], head.shape[2], length)
    for start in range(first, last, slots):
        active = min(slots, last - start)
        for t in range(begin, end):
            run_position(
                weight_arrays, head, tables, shape, constants, sequences, caches, work, t, start, start, active
            )
        for slot in range(active):
            for v in range(shape[2]):
                logits[start + slot, v] = work[0][slot, v]


@functools.cache
def make_kernels():
    """Compile `complete_images` and `extend_sequences`."""
    number, real, types = numba.int64, numba.float32, numba.types
    array, matrix, reals, numbers = real[:, :, ::1], number[:, ::1], real[:, ::1], numba.float64[:, ::1]
    weights = types.UniTuple(array, len(BlockWeights._fields))
    tables = types.Tuple((matrix, number[:, :, ::1], array))
    model = (weights, array, tables, types.UniTuple(number, 3), types.UniTuple(real, 2))
    sequences = types.Tuple((matrix, number[::1]))
    sampling = (number, numbers, types.UniTuple(numba.float64, 5), numbers)
    decoding = (types.Tuple((types.UniTuple(reals, 3), matrix)), reals, number, number)
    return (
        compile_kernel(complete_images, (*model, sequences, *sampling, number, number)),
        compile_kernel(extend_sequences, (*model, sequences, *decoding, number, number)),
    )
