"""Decoding on the CPU, compiled by numba: one position after the other, with no Python between a step's operations.

`complete_images` samples whole images, with no Python between the steps either: from the same distribution as
transformers' `generate`, thousands of times faster where a model is so small that transformers' loop is nearly all
overhead. `extend_sequences` does one step, or several, for a `Decoder`, which keeps the keys and values.

Position t knows the tokens before token t. It goes through the layers and yields the probabilities of token t:

    x = embeddings of the neighbors, the prompt and the position; then, in each layer,
    query, key, value = W (rms(x) gain) + b    query and key are rotated, key and value kept for later positions
    x = x + W (attention + mixing) + b         attention reads positions j <= t, mixing the neighbors
    x = x + W act(W (rms(x) gain) + b) + b

Why it is fast: a vector register holds LANES numbers side by side: channels of the result in `linear_row` and
`mix_values`, positions in `score_positions`, for which keys are stored in pages of LANES positions, as (channel,
position). Nearly every instruction is then a multiply-add with one operand from memory. Keys and values of SLOTS
sequences, which go through all their steps together before the next ones begin, fit into a core's own cache. Sizes
are padded with zeros: channels to multiples of LANES, those of a head to a multiple of HALF.

An image's tokens follow from its prompt and its own row of random numbers by a fixed order of operations: they depend
neither on the number of threads nor on the other images.
"""

import functools

import numpy as np

from .kernel_blocks import BlockWeights, activate
from .kernel_choice import draw_token, exponentiate_logits, sample_token
from .kernel_simd import (
    LANES,
    compile_kernel,
    exp2,
    fma,
    get,
    halves,
    kernel,
    load_flat,
    maximum,
    numba,
    put,
    reduce_max,
    splat,
    store_flat,
    swap_halves,
    total,
    up_to_lane,
)


SLOTS = 2  # even: with guidance an image takes two
HALF = LANES // 2  # a head's channels are padded to a multiple
QKV_BIAS = BlockWeights._fields.index("qkv_bias")
PLAIN = (1.0, 0.0, 1.0, 0.0, 1.0)  # settings that leave the probabilities as they are
float32 = np.float32


@kernel
def store_row(s, out, place, adds):
    """out[place:] = s, plus what it was if `adds`"""
    if adds:
        s += load_flat(out, place)
    store_flat(out, place, s)


@kernel
def linear_row(x, start, inputs, weight, bias, layer, outputs, scale, out, out_start, adds):
    """out[out_start:] = scale (x[start:] weight) + bias, plus what it was if `adds`; arrays are read flat.

    Args:
        weight: For each layer, blocks of LANES outputs, each (inputs, LANES).
    """
    w, o, size = layer * inputs * outputs, 0, inputs * LANES
    while o < outputs:
        a = b = c = d = splat(0)  # four sums: in one, each multiply-add would wait for the one before
        if o + LANES < outputs:  # two blocks: each number of x is read once for both
            for i in range(start, start + inputs, 2):
                a = fma(get(x, i), load_flat(weight, w), a)
                b = fma(get(x, i), load_flat(weight, w + size), b)
                c = fma(get(x, i + 1), load_flat(weight, w + LANES), c)
                d = fma(get(x, i + 1), load_flat(weight, w + size + LANES), d)
                w += 2 * LANES
            store_row(
                fma(b + d, scale, load_flat(bias, layer * outputs + o + LANES)), out, out_start + o + LANES, adds
            )
            a, w = a + c, w + size
        else:
            for i in range(start, start + inputs, 4):
                a = fma(get(x, i), load_flat(weight, w), a)
                b = fma(get(x, i + 1), load_flat(weight, w + LANES), b)
                c = fma(get(x, i + 2), load_flat(weight, w + 2 * LANES), c)
                d = fma(get(x, i + 3), load_flat(weight, w + 3 * LANES), d)
                w += 4 * LANES
            a = (a + b) + (c + d)
        store_row(fma(a, scale, load_flat(bias, layer * outputs + o)), out, out_start + o, adds)
        o += 2 * LANES


@kernel
def normalize_row(x, start, channels, size, eps, gains, gain_start, normed):
    """normed[start:] = x[start:] gains[gain_start:]; returns 1 / sqrt(mean(x**2) + eps), by which it is to be scaled.

    `linear_row` scales its result: it need not wait for the square root. The first `size` channels are real.
    """
    squares = splat(0)
    for c in range(0, channels, LANES):
        v = load_flat(x, start + c)
        squares = fma(v, v, squares)
        store_flat(normed, start + c, v * load_flat(gains, gain_start + c))
    return float32(1) / np.sqrt(total(squares) / float32(size) + eps)


@kernel
def apply_rotary_row(qkv, start, key_start, cos_sin, t, shape, channels, keys, place):
    """Rotate query, qkv[start:], and key, qkv[key_start:], by a position's angles; the key goes to the cache.

    Args:
        cos_sin, shape: As in `complete_images`.
        channels: Of all heads, padded.
        keys, place: The key's first channel is keys[place], the others follow LANES apart.
    """
    (heads, size, hidden_size, _), (_, length, pairs) = shape, cos_sin.shape
    if hidden_size == heads * HALF:  # most models: a vector holds two heads, and the pairs are 4 channels apart
        cos, sin = load_flat(cos_sin, t * LANES), load_flat(cos_sin, (length + t) * LANES)
        for c in range(0, channels, LANES):
            q, k = load_flat(qkv, start + c), load_flat(qkv, key_start + c)
            store_flat(qkv, start + c, fma(swap_halves(q), sin, q * cos))
            store_flat(qkv, key_start + c, fma(swap_halves(k), sin, k * cos))
        for c in range(channels):
            put(keys, place + c * LANES, get(qkv, key_start + c))
        return
    for head in range(heads):
        for p in range(pairs):
            c, cos, sin = head * size + p, get(cos_sin, t * pairs + p), get(cos_sin, (length + t) * pairs + p)
            first, second = get(qkv, start + c), get(qkv, start + c + pairs)
            put(qkv, start + c, first * cos - second * sin)
            put(qkv, start + c + pairs, first * sin + second * cos)
            first, second = get(qkv, key_start + c), get(qkv, key_start + c + pairs)
            put(keys, place + c * LANES, first * cos - second * sin)
            put(keys, place + (c + pairs) * LANES, first * sin + second * cos)
        for c in range(head * size + 2 * pairs, head * size + size):  # these do not rotate
            put(keys, place + c * LANES, get(qkv, key_start + c))


@kernel
def score_positions(query, start, keys, pages, own, page_size, offset, last, scores, score_start, adds):
    """scores[score_start:] = query . key of all positions of the pages up to `last`, for HALF channels of a head.

    Args:
        start: The first of these channels in `query`.
        pages, own: The sequence's pages, from pages[own] on.
        page_size, offset: Of each page of `keys`, and where in it the first of these channels is.
        adds: Add to the scores of other channels.
    """
    q0, q1, q2, q3 = get(query, start), get(query, start + 1), get(query, start + 2), get(query, start + 3)
    q4, q5, q6, q7 = get(query, start + 4), get(query, start + 5), get(query, start + 6), get(query, start + 7)
    for block in range(last + 1):
        k, s = get(pages, own + block) * page_size + offset, score_start + block * LANES
        a = load_flat(scores, s) if adds else splat(0)
        a = fma(q0, load_flat(keys, k), a)
        b = splat(q1) * load_flat(keys, k + LANES)
        a = fma(q2, load_flat(keys, k + 2 * LANES), a)
        b = fma(q3, load_flat(keys, k + 3 * LANES), b)
        a = fma(q4, load_flat(keys, k + 4 * LANES), a)
        b = fma(q5, load_flat(keys, k + 5 * LANES), b)
        a = fma(q6, load_flat(keys, k + 6 * LANES), a)
        b = fma(q7, load_flat(keys, k + 7 * LANES), b)
        store_flat(scores, s, a + b)


@kernel
def exponentiate_scores(scores, start, t):
    """scores[start:] = exp2(scores - their maximum) up to position t, 0 for the rest of its page; returns 1 / sum."""
    last = start + t // LANES * LANES
    largest = up_to_lane(t % LANES, load_flat(scores, last), -np.inf)
    store_flat(scores, last, largest)
    for s in range(start, last, LANES):
        largest = maximum(largest, load_flat(scores, s))
    highest, norm = splat(reduce_max(largest)), splat(0)
    for s in range(start, last + 1, LANES):
        e = exp2(load_flat(scores, s) - highest)
        norm += e
        store_flat(scores, s, e)
    return float32(1) / total(norm)


@kernel
def mix_values(scores, low, high, values, pages, own, page_size, offset, stride, last):
    """Sum over positions of score times value, for LANES channels.

    Args:
        low, high: Where the scores begin: of the head that has the first HALF of the channels, and of the others'.
        pages, own, page_size, offset: As in `score_positions`, for `values`.
        stride: From one position to the next.
    """
    a = b = c = d = splat(0)
    for block in range(last + 1):
        v, i, j = get(pages, own + block) * page_size + offset, low + block * LANES, high + block * LANES
        for _ in range(0, LANES, 4):
            a = fma(halves(get(scores, i), get(scores, j)), load_flat(values, v), a)
            b = fma(halves(get(scores, i + 1), get(scores, j + 1)), load_flat(values, v + stride), b)
            c = fma(halves(get(scores, i + 2), get(scores, j + 2)), load_flat(values, v + 2 * stride), c)
            d = fma(halves(get(scores, i + 3), get(scores, j + 3)), load_flat(values, v + 3 * stride), d)
            v, i, j = v + 4 * stride, i + 4, j + 4
    return (a + b) + (c + d)


@kernel
def attend_row(
    query, start, keys, values, pages, own, page_size, offset, t, heads, size, channels, scores, mixed, mixed_start
):
    """Attention of query[start:] to positions up to t -> mixed[mixed_start:].

    Args:
        keys, values: Caches, as in `run_position`.
        pages, own, page_size, offset: The sequence's pages, from pages[own] on; their size, and where in each this
            layer begins.
        size, channels: Of a head and of all heads, padded.
        scores: Work space.
    """
    length, last = pages.shape[1] * LANES, t // LANES
    factors = heads * length  # their place, after the scores
    for head in range(heads):
        first, row = head * size, head * length
        for c in range(first, first + size, HALF):
            place = offset + c * LANES
            score_positions(query, start + c, keys, pages, own, page_size, place, last, scores, row, c > first)
        put(scores, factors + head, exponentiate_scores(scores, row, t))
    head, next_head = 0, size  # of channel c, and the first channel of the head after it
    for c in range(0, channels, LANES):
        if c >= next_head and head < heads - 1:
            head, next_head = head + 1, next_head + size
        low = head
        if c + HALF >= next_head and head < heads - 1:
            head, next_head = head + 1, next_head + size
        place = offset + c
        s = mix_values(scores, low * length, head * length, values, pages, own, page_size, place, channels, last)
        factor = halves(get(scores, factors + low), get(scores, factors + head))
        store_flat(mixed, mixed_start + c, s * factor)


@kernel
def find_neighbors(places, t, pages, own, page_size, channels, neighbors):
    """neighbors = for each neighbor of position t in the image, its weight's and its value's place in the first layer

    Args:
        places: Those of the neighbors, 0 outside (N, K).
        neighbors: (2 K + 1,), first their number.
    """
    n = 0
    for k in range(places.shape[1]):
        near = places[t, k]
        if near > 0:
            neighbors[2 * n + 1] = k * channels
            neighbors[2 * n + 2] = get(pages, own + near // LANES) * page_size + near % LANES * channels
            n += 1
    neighbors[0] = n


@kernel
def add_neighbors(values, neighbors, offset, weight, weight_start, channels, mixed, start):
    """mixed[start:] += sum over neighbors of weight times value

    Args:
        neighbors: From `find_neighbors`.
        offset, weight_start: Where in each page of the values, and in the weights, this layer begins.
    """
    for c in range(0, channels, LANES):
        s = load_flat(mixed, start + c)
        for n in range(1, 2 * neighbors[0], 2):
            place, near = weight_start + neighbors[n] + c, offset + neighbors[n + 1] + c
            s = fma(load_flat(weight, place), load_flat(values, near), s)
        store_flat(mixed, start + c, s)


@kernel
def run_position(weight_arrays, head, tables, shape, constants, sequences, caches, work, t, first, page_row, count):
    """Position t of `count` sequences: their logits -> `work`; keys and values are added to the caches.

    Args:
        weight_arrays, head, tables, shape, constants, sequences: As in `complete_images`.
        caches: Keys (pages, layers, A, LANES) and values (pages, layers, LANES, A) of LANES positions a page, both
            flat, with A channels of all heads, padded; and each sequence's pages (S, blocks).
        work: From `work_space`.
        first: The first of the sequences; the others follow.
        page_row: The row of its pages; those of the others follow.
    """
    weights = BlockWeights(*weight_arrays)
    (places, context, cos_sin), (heads, head_size, size, _), (eps, beta) = tables, shape, constants
    (ids, rows), ((keys, values), pages) = sequences, caches
    logits, x, normed, qkv, mixed, hidden, scores, no_bias, neighbors = work
    layers, channels, width, inner = len(weights.out_bias), x.shape[1], mixed.shape[1], hidden.shape[1]
    one, gain_size, page_size = float32(1), weights.attention_gain.shape[1], layers * width * LANES
    grid = weights.column_table.shape[1] // channels
    row_start, column_start = t // grid * channels, t % grid * channels
    for slot in range(count):
        for c in range(0, channels, LANES):
            s = load_flat(weights.row_table, row_start + c)
            s += load_flat(weights.column_table, column_start + c)
            for k in range(context.shape[1]):
                place, row = context[t, k, 0], context[t, k, 1]
                if place >= 0:
                    row += ids[first + slot, place]
                s += load_flat(weights.context_table, row * channels + c)
            store_flat(x, slot * channels + c, s)
        find_neighbors(places, t, pages, (page_row + slot) * pages.shape[1], page_size, width, neighbors[slot])

    for layer in range(layers):
        offset = layer * width * LANES
        for slot in range(count):
            start, q, out, up = slot * channels, slot * 3 * width, slot * width, slot * inner
            gain, own = layer * gain_size + rows[first + slot] * channels, (page_row + slot) * pages.shape[1]
            scale = normalize_row(x, start, channels, size, eps, weights.attention_gain, gain, normed)
            linear_row(
                normed, start, channels, weights.qkv_weight, weights.qkv_bias, layer, 3 * width, scale, qkv, q, False
            )
            page = offset + get(pages, own + t // LANES) * page_size
            apply_rotary_row(qkv, q, q + width, cos_sin, t, shape, width, keys, page + t % LANES)
            for c in range(0, width, LANES):
                store_flat(values, page + t % LANES * width + c, load_flat(qkv, q + 2 * width + c))
            attend_row(
                qkv, q, keys, values, pages, own, page_size, offset, t, heads, head_size, width, scores, mixed, out
            )
            mixing = layer * weights.mixing_weight.shape[1]
            add_neighbors(values, neighbors[slot], offset, weights.mixing_weight, mixing, width, mixed, out)
            linear_row(mixed, out, width, weights.out_weight, weights.out_bias, layer, channels, one, x, start, True)
            scale = normalize_row(x, start, channels, size, eps, weights.mlp_gain, gain, normed)
            linear_row(
                normed, start, channels, weights.up_weight, weights.up_bias, layer, inner, scale, hidden, up, False
            )
        activate(hidden, beta, hidden, False)
        for slot in range(count):
            up, start = slot * inner, slot * channels
            linear_row(hidden, up, inner, weights.down_weight, weights.down_bias, layer, channels, one, x, start, True)

    for slot in range(count):
        start, out = slot * channels, slot * no_bias.size
        gain = rows[first + slot] * channels
        scale = normalize_row(x, start, channels, size, eps, weights.last_gain, gain, normed)
        linear_row(normed, start, channels, head, no_bias, 0, no_bias.size, scale, logits, out, False)


@kernel
def work_space(count, weight_arrays, head, shape, places):
    """What `run_position` writes into, for `count` sequences; first the logits."""
    weights = BlockWeights(*weight_arrays)
    channels, width, inner = weights.out_bias.shape[1], weights.qkv_bias.shape[1] // 3, weights.up_bias.shape[1]
    x, normed = np.zeros((count, channels), float32), np.zeros((count, channels), float32)
    qkv, mixed = np.zeros((count, 3 * width), float32), np.zeros((count, width), float32)
    hidden = np.zeros((count, inner), float32)
    scores = np.zeros(shape[0] * (len(places) + LANES), float32)  # each head's in whole pages, then a factor for each
    logits, no_bias = np.zeros((count, head.size // channels), float32), np.zeros(head.size // channels, float32)
    neighbors = np.zeros((count, 2 * places.shape[1] + 1), np.int64)
    return logits, x, normed, qkv, mixed, hidden, scores, no_bias, neighbors


def complete_images(
    weight_arrays, head, tables, shape, constants, sequences, given, noise, settings, log_probs, first, last
):
    """Complete images `first` to `last` - 1.

    Args:
        weight_arrays: The fields of `BlockWeights`, from `packed_weights`: for each layer a row of numbers.
        head: Matrix of the head, as `linear_row` takes it.
        tables: Places of the neighbors that mixing reads, 0 outside (N, K), `context_rows`, and the angles:
            `rotary_table` where a head has HALF channels, `rotary_cos_sin` where not.
        shape: Number of heads, channels of a head (padded), hidden size and vocabulary (both without padding).
        constants: eps of the norms, beta of the activation.
        sequences: Prompts and tokens (S, 1 + N), of which all after the first `given` are filled in, and the row of
            the gains for each prompt (S,). An image is one sequence; with guidance two, its own and one with the start
            token, side by side.
        noise: (B, N - given), for `sample_token`.
        settings: temperature, top_k, top_p, min_p, guidance_scale.
        log_probs: Filled in with each token's log-probability by the model, without any of the settings (B, N).
    """
    (ids, _), vocab, guidance = sequences, shape[3], settings[4]
    branches = 1 if guidance == 1 else 2
    slots, length = min(SLOTS, branches * (last - first)), len(tables[0])
    blocks = (length + LANES - 1) // LANES
    size = slots * blocks * len(weight_arrays[QKV_BIAS]) * weight_arrays[QKV_BIAS].shape[1] // 3 * LANES
    arrays = np.zeros(size, float32), np.zeros(size, float32)
    pages = np.empty((slots, blocks), np.int64)
    for slot in range(slots):
        for block in range(blocks):
            pages[slot, block] = slot * blocks + block
    caches = (arrays, pages)
    work = work_space(slots, weight_arrays, head, shape, tables[0])
    logits, chances, norms = work[0], np.zeros((slots, work[0].shape[1]), float32), np.zeros(slots)
    guided, weights, order = np.zeros(vocab), np.zeros(vocab), np.zeros(vocab, np.int64)
    is_plain = settings == PLAIN
    for start in range(first, last, slots // branches):
        active = min(slots, branches * (last - start))
        for t in range(length):
            run_position(
                weight_arrays, head, tables, shape, constants, sequences, caches, work, t, branches * start, 0, active
            )
            for slot in range(active):
                norms[slot] = exponentiate_logits(logits, slot * logits.shape[1], vocab, chances[slot])
            for slot in range(0, active, branches):
                image = start + slot // branches
                sequence = branches * image
                if t >= given:
                    uniform = noise[image, t - given]
                    if is_plain:
                        token = draw_token(chances[slot], vocab, uniform)
                    else:
                        for v in range(vocab):
                            guided[v] = logits[slot, v] - norms[slot]
                            if branches == 2:
                                other = logits[slot + 1, v] - norms[slot + 1]
                                guided[v] = other + guidance * (guided[v] - other)
                        token = sample_token(guided, uniform, settings, order, weights)
                    for branch in range(branches):
                        ids[sequence + branch, t + 1] = token
                log_probs[image, t] = logits[slot, ids[sequence, t + 1]] - norms[slot]


def extend_sequences(
    weight_arrays, head, tables, shape, constants, sequences, caches, logits, begin, end, first, last
):
    """Run sequences `first` to `last` - 1 through positions `begin` to `end` - 1; the last one's logits -> (S, V).

    Args:
        weight_arrays, head, tables, shape, constants: As in `complete_images`.
        sequences: Prompts and tokens (S, 1 + N), known up to position `end` - 1, and the rows of the gains (S,).
        caches: As in `run_position`: keys and values of the positions before `begin`, which are added to.
    """
    slots = min(SLOTS, last - first)
    work = work_space(slots, weight_arrays, head, shape, tables[0])
    for start in range(first, last, slots):
        active = min(slots, last - start)
        for t in range(begin, end):
            run_position(
                weight_arrays, head, tables, shape, constants, sequences, caches, work, t, start, start, active
            )
        for slot in range(active):
            for v in range(shape[3]):
                logits[start + slot, v] = work[0][slot, v]


def _model_types() -> tuple:
    """numba's types of the arguments with which both kernels begin, up to `sequences`."""
    number, real, types = numba.int64, numba.float32, numba.types
    tables = types.Tuple((number[:, ::1], number[:, :, ::1], real[:, :, ::1]))
    weights = types.UniTuple(real[:, ::1], len(BlockWeights._fields))
    sequences = types.Tuple((number[:, ::1], number[::1]))
    return (weights, real[::1], tables, types.UniTuple(number, 4), types.UniTuple(real, 2), sequences)


@functools.cache
def completion_kernel():
    """Compile `complete_images`."""
    number, numbers = numba.int64, numba.float64[:, ::1]
    sampling = (number, numbers, numba.types.UniTuple(numba.float64, 5), numbers)
    return compile_kernel(complete_images, (*_model_types(), *sampling, number, number))


@functools.cache
def extension_kernel():
    """Compile `extend_sequences`."""
    number, real, types = numba.int64, numba.float32, numba.types
    caches = types.Tuple((types.UniTuple(real[::1], 2), number[:, ::1]))
    return compile_kernel(extend_sequences, (*_model_types(), caches, real[:, ::1], *[number] * 4))
