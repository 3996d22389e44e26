"""All of a small model except its head on the CPU, forward and backward, compiled by numba: one image at a time.

torch runs a small model operation by operation over the whole batch: each result is written to memory and read again,
and products of matrices with 16 columns leave most of the processor idle. Here an image goes through all blocks before
the next one begins. What `IGPTBlock` computes, with rms(x) = x / sqrt(mean(x**2) + eps):

    query, key, value = W (rms(x) gain) + b, query and key rotated by rotary positions
    a = x + W (attention(query, key, value) + mixing(value)) + b
    y = a + W act(W (rms(a) gain) + b) + b

with the embeddings before the first block, the norm after the last, and all gradients. The gain is the
row of the image's class where norms are class-conditional. The scale of the scores is multiplied into the matrix of
the queries by the caller (`scale_queries`).

Attention, for one head: the scores are in base 2, and a vector holds those of LANES queries (or keys) side by side.

    e[i, j] = 2**(query[i] . key[j] - row_max[i])    out[i] = inverse[i] sum_j e[i, j] value[j], inverse = 1 / sum_j e

As in FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135) the T x T matrix e is not kept for backward
but computed again. With p[i, j] = inverse[i] e[i, j] and g = d loss / d out:

    dscore[i, j] = p[i, j] (g[i] . value[j] - g[i] . out[i]) ln 2
    dquery[i] = sum_j dscore[i, j] key[j]    dkey[j] = sum_i dscore[i, j] query[i]    dvalue[j] = sum_i p[i, j] g[i]

With keys in the lanes, dkey and dvalue are sums over rows; dscores is stored, and a short second pass sums it into
dquery.

Position t is row t of most arrays, but row PAD_ROWS + t of those of query, key and value. The PAD_ROWS rows in front
are zeros: a block of queries may begin before the first position, and row 0 stands for neighbors outside the image.

A group of images is one task with a fixed order of operations: results do not depend on the number of threads. The
gradients of the groups are summed in pairs (`pairwise_sum`), so that they do not depend on how a batch is split into
halves, quarters, ... over processes or accumulation steps either, as long as each group is one image.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from .kernel_simd import (
    HAS_AVX512,
    LANES,
    compile_kernel,
    exp2,
    fma,
    from_lane,
    kernel,
    load,
    load_pair,
    maximum,
    numba,
    splat,
    store,
    swap_halves,
    total,
    up_to_lane,
)


PAD_ROWS = LANES
HEAD_SIZE = 8  # then the vectors of queries, gradients and sums fit into the registers together
LN_2, LOG2_E = np.float32(math.log(2)), math.log2(math.e)
float32 = np.float32


class BlockWeights(NamedTuple):
    """The weights of an IGPTModel, or their gradients, as kernels take them: one array of each kind for all layers.

    Matrices are (L, inputs, outputs), biases (L, 1, outputs), gains (L, R, C) with R = 1, or a row for each prompt if
    norms are class-conditional. What is not in a layer has L = 1. Gradients have one more dimension, the groups.
    """

    context_table: np.ndarray  # (1, rows, C)
    row_table: np.ndarray  # (1, G + 1, C)
    column_table: np.ndarray  # (1, G, C), for a grid of G rows and columns
    qkv_weight: np.ndarray
    qkv_bias: np.ndarray
    mixing_weight: np.ndarray  # (L, K, C)
    out_weight: np.ndarray
    out_bias: np.ndarray
    up_weight: np.ndarray
    up_bias: np.ndarray
    down_weight: np.ndarray
    down_bias: np.ndarray
    attention_gain: np.ndarray
    mlp_gain: np.ndarray
    last_gain: np.ndarray  # (1, R, C)


class TransposedWeights(NamedTuple):
    """The matrices again for the backward pass, (L, outputs, inputs)."""

    qkv: np.ndarray
    out: np.ndarray
    up: np.ndarray
    down: np.ndarray


# --- rows -----------------------------------------------------------------------------------------------------------
# numba has slices for both, which take seconds to compile.


@kernel
def empty(rows, columns):
    """An array whose vectors do not straddle two lines of the cache: it begins at a multiple of 64 bytes."""
    flat = np.empty(rows * columns + LANES, float32)
    start = -(flat.ctypes.data // 4) % LANES
    return flat[start : start + rows * columns].reshape(rows, columns)


@kernel
def zeros(rows, columns):
    """The same, filled with zeros."""
    x = empty(rows, columns)
    for t in range(rows):
        for c in range(columns):
            x[t, c] = 0
    return x


@kernel
def copy(source, target):
    """target = source, as many rows as the target has"""
    for t in range(len(target)):
        for c in range(0, target.shape[1], LANES):
            store(target, t, c, load(source, t, c))


@kernel
def fill(x, first, value):
    """x[first:] = value"""
    for t in range(first, len(x)):
        for c in range(0, x.shape[1], LANES):
            store(x, t, c, splat(value))


# --- matrices, norms, activation -------------------------------------------------------------------------------------


@kernel
def linear(x, weight, bias, out, first_row, adds):
    """out[first_row + t] = x[t] weight + bias, plus what it was if `adds`."""
    inputs, outputs = weight.shape
    for o in range(0, outputs, LANES):
        b = load(bias, 0, o)
        for t in range(0, len(x), 8):
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = b
            for i in range(inputs):
                w = load(weight, i, o)
                s0 = fma(x[t, i], w, s0)
                s1 = fma(x[t + 1, i], w, s1)
                s2 = fma(x[t + 2, i], w, s2)
                s3 = fma(x[t + 3, i], w, s3)
                s4 = fma(x[t + 4, i], w, s4)
                s5 = fma(x[t + 5, i], w, s5)
                s6 = fma(x[t + 6, i], w, s6)
                s7 = fma(x[t + 7, i], w, s7)
            put_rows(out, first_row + t, o, s0, s1, s2, s3, adds)
            put_rows(out, first_row + t + 4, o, s4, s5, s6, s7, adds)


@kernel
def add_outer(x, grad, first_row, dweight, dbias):
    """dweight += sum_t x[t] (outer) grad[first_row + t], dbias += sum_t grad[first_row + t]"""
    outputs, o = dweight.shape[1], 0
    while HAS_AVX512 and o + LANES < outputs:
        add_two_outer(x, grad, first_row, dweight, o)
        o += 2 * LANES
    while o < outputs:
        add_one_outer(x, grad, first_row, dweight, o)
        o += LANES
    for o in range(0, outputs, LANES):
        s0 = s1 = s2 = s3 = splat(0)
        for t in range(first_row, first_row + len(x), 4):
            s0 += load(grad, t, o)
            s1 += load(grad, t + 1, o)
            s2 += load(grad, t + 2, o)
            s3 += load(grad, t + 3, o)
        store(dbias, 0, o, load(dbias, 0, o) + ((s0 + s1) + (s2 + s3)))


@kernel
def add_one_outer(x, grad, first_row, dweight, o):
    """`add_outer` for the vector of outputs that begins at `o`; 8 rows of dweight at a time."""
    for i in range(0, len(dweight), 8):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(0)
        for t in range(len(x)):
            g = load(grad, first_row + t, o)
            s0 = fma(x[t, i], g, s0)
            s1 = fma(x[t, i + 1], g, s1)
            s2 = fma(x[t, i + 2], g, s2)
            s3 = fma(x[t, i + 3], g, s3)
            s4 = fma(x[t, i + 4], g, s4)
            s5 = fma(x[t, i + 5], g, s5)
            s6 = fma(x[t, i + 6], g, s6)
            s7 = fma(x[t, i + 7], g, s7)
        put_rows(dweight, i, o, s0, s1, s2, s3, True)
        put_rows(dweight, i + 4, o, s4, s5, s6, s7, True)


@kernel
def add_two_outer(x, grad, first_row, dweight, o):
    """`add_one_outer` for two vectors: each number of x is loaded once for both. Their 16 sums need AVX-512."""
    for i in range(0, len(dweight), 8):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(0)
        u0 = u1 = u2 = u3 = u4 = u5 = u6 = u7 = splat(0)
        for t in range(len(x)):
            g, h = load(grad, first_row + t, o), load(grad, first_row + t, o + LANES)
            s0, u0 = fma(x[t, i], g, s0), fma(x[t, i], h, u0)
            s1, u1 = fma(x[t, i + 1], g, s1), fma(x[t, i + 1], h, u1)
            s2, u2 = fma(x[t, i + 2], g, s2), fma(x[t, i + 2], h, u2)
            s3, u3 = fma(x[t, i + 3], g, s3), fma(x[t, i + 3], h, u3)
            s4, u4 = fma(x[t, i + 4], g, s4), fma(x[t, i + 4], h, u4)
            s5, u5 = fma(x[t, i + 5], g, s5), fma(x[t, i + 5], h, u5)
            s6, u6 = fma(x[t, i + 6], g, s6), fma(x[t, i + 6], h, u6)
            s7, u7 = fma(x[t, i + 7], g, s7), fma(x[t, i + 7], h, u7)
        put_rows(dweight, i, o, s0, s1, s2, s3, True)
        put_rows(dweight, i + 4, o, s4, s5, s6, s7, True)
        put_rows(dweight, i, o + LANES, u0, u1, u2, u3, True)
        put_rows(dweight, i + 4, o + LANES, u4, u5, u6, u7, True)


@kernel
def put_rows(out, row, column, a, b, c, d, adds):
    """Four vectors -> out[row : row + 4, column], added to what is there if `adds`."""
    if adds:
        a += load(out, row, column)
        b += load(out, row + 1, column)
        c += load(out, row + 2, column)
        d += load(out, row + 3, column)
    store(out, row, column, a)
    store(out, row + 1, column, b)
    store(out, row + 2, column, c)
    store(out, row + 3, column, d)


@kernel
def normalize(x, eps, gains, row, normed, scales):
    """normed[t] = rms(x[t]) gains[row]; scales[t] is the factor of rms."""
    rows, size = x.shape
    for t in range(rows):
        squares = splat(0)
        for c in range(0, size, LANES):
            squares = fma(load(x, t, c), load(x, t, c), squares)
        scales[t] = float32(1) / np.sqrt(total(squares) / float32(size) + eps)
        for c in range(0, size, LANES):
            store(normed, t, c, load(x, t, c) * splat(scales[t]) * load(gains, row, c))


@kernel
def add_normalize_gradient(x, scales, gains, row, grad, dx, dgains):
    """dx[t] += d loss / d x[t], dgains[row] += d loss / d gains[row], where grad is d loss / d (rms(x) gains[row])"""
    rows, size = grad.shape
    for t in range(rows):
        products = splat(0)
        for c in range(0, size, LANES):
            products = fma(load(grad, t, c) * load(gains, row, c), load(x, t, c), products)
        mean = -total(products) / float32(size) * scales[t] * scales[t]
        for c in range(0, size, LANES):
            g = fma(mean, load(x, t, c), load(grad, t, c) * load(gains, row, c))
            store(dx, t, c, fma(scales[t], g, load(dx, t, c)))
    for c in range(0, size, LANES):
        s = load(dgains, row, c)
        for t in range(rows):
            s = fma(load(grad, t, c) * splat(scales[t]), load(x, t, c), s)
        store(dgains, row, c, s)


@kernel
def activate(x, beta, derivative, wants_derivative):
    """x = act(x) = x sigmoid(beta x) and, if wanted, derivative = act'(x)"""
    one, rate = splat(1), splat(-beta * float32(LOG2_E))
    lowest = splat(float32(-60) / beta)  # sigmoid(-60) is nearly 0
    for t in range(len(x)):
        for c in range(0, x.shape[1], LANES):
            z = load(x, t, c)
            sigmoid = one / (one + exp2(maximum(z, lowest) * rate))
            y = z * sigmoid
            store(x, t, c, y)
            if wants_derivative:
                store(derivative, t, c, fma(splat(beta) * y, one - sigmoid, sigmoid))


@kernel
def multiply(x, y):
    """x *= y"""
    for t in range(len(x)):
        for c in range(0, x.shape[1], LANES):
            store(x, t, c, load(x, t, c) * load(y, t, c))


# --- attention -------------------------------------------------------------------------------------------------------


@kernel
def apply_rotary(qkv, cos_sin, length, direction):
    """Rotate query and key of each position, in row PAD_ROWS + t, by its angles; back, if direction is -1.

    cos_sin (2, T, LANES): cosines, and sines with the sign for the first and for the second channel of a pair.
    """
    for t in range(length):
        cosines, sines = load(cos_sin[0], t, 0), load(cos_sin[1], t, 0) * splat(direction)
        for c in range(0, qkv.shape[1] // 3 * 2, LANES):
            x = load(qkv, PAD_ROWS + t, c)
            store(qkv, PAD_ROWS + t, c, fma(swap_halves(x), sines, x * cosines))


@kernel
def take_columns(x, row, column, columns):
    """columns[d, lane] = x[row + lane, column + d]"""
    for lane in range(LANES):
        for d in range(HEAD_SIZE):
            columns[d, lane] = x[row + lane, column + d]


@kernel
def dot(c0, c1, c2, c3, c4, c5, c6, c7, x, row, column):
    """sum_d columns[d] x[row, column + d]"""
    near = fma(c0, x[row, column], fma(c1, x[row, column + 1], splat(0)))
    near = fma(c2, x[row, column + 2], fma(c3, x[row, column + 3], near))
    far = fma(c4, x[row, column + 4], fma(c5, x[row, column + 5], near))
    return fma(c6, x[row, column + 6], fma(c7, x[row, column + 7], far))


@kernel
def attend(qkv, row_max, inverse, out, scores, columns, length):
    """Causal attention of all heads -> out (rows, C); `row_max` and `inverse` (H, rows) are for backward."""
    channels = out.shape[1]
    for q in range(0, channels, HEAD_SIZE):
        head, k, v = q // HEAD_SIZE, channels + q, 2 * channels + q
        for start in range(-(-length % LANES), length, LANES):  # lane: query start + lane; the first block has fewest
            take_columns(qkv, PAD_ROWS + start, q, columns)
            q0, q1, q2, q3 = load(columns, 0, 0), load(columns, 1, 0), load(columns, 2, 0), load(columns, 3, 0)
            q4, q5, q6, q7 = load(columns, 4, 0), load(columns, 5, 0), load(columns, 6, 0), load(columns, 7, 0)
            largest = splat(-np.inf)
            for j in range(start + LANES):
                s = dot(q0, q1, q2, q3, q4, q5, q6, q7, qkv, PAD_ROWS + j, k)
                if j > start:
                    s = from_lane(j - start, s, -np.inf)  # queries before the key
                largest = maximum(largest, s)
                store(scores, j, 0, s)

            norm = t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = splat(0)
            for j in range(start + LANES):
                e, r = exp2(load(scores, j, 0) - largest), PAD_ROWS + j
                norm += e
                t0 = fma(e, qkv[r, v], t0)
                t1 = fma(e, qkv[r, v + 1], t1)
                t2 = fma(e, qkv[r, v + 2], t2)
                t3 = fma(e, qkv[r, v + 3], t3)
                t4 = fma(e, qkv[r, v + 4], t4)
                t5 = fma(e, qkv[r, v + 5], t5)
                t6 = fma(e, qkv[r, v + 6], t6)
                t7 = fma(e, qkv[r, v + 7], t7)
            factor = splat(1) / norm
            put_rows(columns, 0, 0, t0 * factor, t1 * factor, t2 * factor, t3 * factor, False)
            put_rows(columns, 4, 0, t4 * factor, t5 * factor, t6 * factor, t7 * factor, False)
            for lane in range(max(-start, 0), LANES):
                for d in range(HEAD_SIZE):
                    out[start + lane, q + d] = columns[d, lane]
            store(columns, 0, 0, largest)
            store(columns, 1, 0, factor)
            for lane in range(max(-start, 0), LANES):
                row_max[head, PAD_ROWS + start + lane] = columns[0, lane]
                inverse[head, PAD_ROWS + start + lane] = columns[1, lane]


@kernel
def attend_backward(qkv, row_max, inverse, out, grad, dqkv, deltas, columns, dscores, pairs, length):
    """d loss / d out, in `grad` (PAD_ROWS + rows, C), -> d loss / d query, key and value, without what mixing adds."""
    channels = out.shape[1]
    for q in range(0, channels, HEAD_SIZE):
        head, k, v = q // HEAD_SIZE, channels + q, 2 * channels + q
        for i in range(length):
            delta = float32(0)
            for d in range(HEAD_SIZE):
                delta += grad[PAD_ROWS + i, q + d] * out[i, q + d]
            deltas[0, PAD_ROWS + i] = delta

        for start in range(0, length, LANES):  # lane: key start + lane
            take_columns(qkv, PAD_ROWS + start, k, columns)
            k0, k1, k2, k3 = load(columns, 0, 0), load(columns, 1, 0), load(columns, 2, 0), load(columns, 3, 0)
            k4, k5, k6, k7 = load(columns, 4, 0), load(columns, 5, 0), load(columns, 6, 0), load(columns, 7, 0)
            take_columns(qkv, PAD_ROWS + start, v, columns)
            v0, v1, v2, v3 = load(columns, 0, 0), load(columns, 1, 0), load(columns, 2, 0), load(columns, 3, 0)
            v4, v5, v6, v7 = load(columns, 4, 0), load(columns, 5, 0), load(columns, 6, 0), load(columns, 7, 0)
            t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = splat(0)
            u0 = u1 = u2 = u3 = u4 = u5 = u6 = u7 = splat(0)
            for i in range(start, length):
                r = PAD_ROWS + i
                s = dot(k0, k1, k2, k3, k4, k5, k6, k7, qkv, r, q) - splat(row_max[head, r])
                if i < start + LANES - 1:
                    s = up_to_lane(i - start, s, -np.inf)  # keys after the query
                p = exp2(s) * splat(inverse[head, r])
                ds = p * (dot(v0, v1, v2, v3, v4, v5, v6, v7, grad, r, q) - splat(deltas[0, r]))
                store(dscores, i, start, ds)
                t0 = fma(ds, qkv[r, q], t0)
                t1 = fma(ds, qkv[r, q + 1], t1)
                t2 = fma(ds, qkv[r, q + 2], t2)
                t3 = fma(ds, qkv[r, q + 3], t3)
                t4 = fma(ds, qkv[r, q + 4], t4)
                t5 = fma(ds, qkv[r, q + 5], t5)
                t6 = fma(ds, qkv[r, q + 6], t6)
                t7 = fma(ds, qkv[r, q + 7], t7)
                u0 = fma(p, grad[r, q], u0)
                u1 = fma(p, grad[r, q + 1], u1)
                u2 = fma(p, grad[r, q + 2], u2)
                u3 = fma(p, grad[r, q + 3], u3)
                u4 = fma(p, grad[r, q + 4], u4)
                u5 = fma(p, grad[r, q + 5], u5)
                u6 = fma(p, grad[r, q + 6], u6)
                u7 = fma(p, grad[r, q + 7], u7)
            factor = splat(LN_2)
            put_rows(columns, 0, 0, t0 * factor, t1 * factor, t2 * factor, t3 * factor, False)
            put_rows(columns, 4, 0, t4 * factor, t5 * factor, t6 * factor, t7 * factor, False)
            for lane in range(min(LANES, length - start)):
                for d in range(HEAD_SIZE):
                    dqkv[PAD_ROWS + start + lane, k + d] = columns[d, lane]
            put_rows(columns, 0, 0, u0, u1, u2, u3, False)
            put_rows(columns, 4, 0, u4, u5, u6, u7, False)
            for lane in range(min(LANES, length - start)):
                for d in range(HEAD_SIZE):
                    dqkv[PAD_ROWS + start + lane, v + d] = columns[d, lane]

        # dquery = dscores times keys. A vector holds two keys, channel by channel: lane 2 d + e is channel d of key e.
        for j in range(0, len(out), 2):
            for d in range(HEAD_SIZE):
                pairs[j // 2, 2 * d] = qkv[PAD_ROWS + j, k + d]
                pairs[j // 2, 2 * d + 1] = qkv[PAD_ROWS + j + 1, k + d]
        for i in range(0, length, 4):
            t0 = t1 = t2 = t3 = splat(0)
            for j in range(0, i // LANES * LANES + LANES, 2):
                two = load(pairs, j // 2, 0)
                t0 = fma(load_pair(dscores, i, j), two, t0)
                t1 = fma(load_pair(dscores, i + 1, j), two, t1)
                t2 = fma(load_pair(dscores, i + 2, j), two, t2)
                t3 = fma(load_pair(dscores, i + 3, j), two, t3)
            put_rows(columns, 0, 0, t0, t1, t2, t3, False)
            for n in range(min(4, length - i)):
                for d in range(HEAD_SIZE):
                    dqkv[PAD_ROWS + i + n, q + d] = (columns[n, 2 * d] + columns[n, 2 * d + 1]) * LN_2


@kernel
def mix(qkv, weight, places, out):
    """out[t] += sum_k weight[k] value[k-th neighbor of t]"""
    neighbors, channels = weight.shape
    for c in range(0, channels, LANES):
        v = 2 * channels + c
        for t in range(len(places)):
            s0, s1, s2, s3 = load(out, t, c), splat(0), splat(0), splat(0)  # in one sum, each would wait for the other
            for k in range(0, neighbors, 4):
                s0 = fma(load(weight, k, c), load(qkv, places[t, k], v), s0)
                s1 = fma(load(weight, k + 1, c), load(qkv, places[t, k + 1], v), s1)
                s2 = fma(load(weight, k + 2, c), load(qkv, places[t, k + 2], v), s2)
                s3 = fma(load(weight, k + 3, c), load(qkv, places[t, k + 3], v), s3)
            store(out, t, c, (s0 + s1) + (s2 + s3))


@kernel
def mix_backward(qkv, weight, places, grad, dqkv, dweight):
    """Adds to d loss / d value, in dqkv, and to dweight."""
    neighbors, channels = weight.shape
    for c in range(0, channels, LANES):
        v = 2 * channels + c
        for k in range(0, neighbors, 4):
            s0 = s1 = s2 = s3 = splat(0)
            for t in range(len(places)):
                g = load(grad, PAD_ROWS + t, c)
                s0 = fma(g, load(qkv, places[t, k], v), s0)
                s1 = fma(g, load(qkv, places[t, k + 1], v), s1)
                s2 = fma(g, load(qkv, places[t, k + 2], v), s2)
                s3 = fma(g, load(qkv, places[t, k + 3], v), s3)
            put_rows(dweight, k, c, s0, s1, s2, s3, True)
        for t in range(len(places)):
            g = load(grad, PAD_ROWS + t, c)
            for k in range(neighbors):
                r = places[t, k]
                store(dqkv, r, v, fma(load(weight, k, c), g, load(dqkv, r, v)))
        store(dqkv, 0, v, splat(0))  # what was added for neighbors outside the image


# --- embeddings ------------------------------------------------------------------------------------------------------


@kernel
def embed(ids, table, row_table, column_table, context, out):
    """Sum of the embeddings of row, column, prompt ids[0] and the known neighbors -> out (rows, C).

    context (T, K + 1, 2) has for each neighbor, the prompt last, its place in `ids` and the first row of its part of
    the table; a place of -1 is outside the image, and the row that stands for that.
    """
    grid = len(column_table)
    for c in range(0, out.shape[1], LANES):
        for t in range(len(context)):
            s = load(row_table, t // grid, c) + load(column_table, t % grid, c)
            for k in range(context.shape[1]):
                place, row = context[t, k, 0], context[t, k, 1]
                s += load(table, row + (ids[place] if place >= 0 else 0), c)
            store(out, t, c, s)


@kernel
def embed_backward(ids, context, grad, dtable, drow, dcolumn):
    """Adds to the gradients of the tables."""
    grid = len(dcolumn)
    for c in range(0, grad.shape[1], LANES):
        for t in range(len(context)):
            g = load(grad, t, c)
            store(drow, t // grid, c, load(drow, t // grid, c) + g)
            store(dcolumn, t % grid, c, load(dcolumn, t % grid, c) + g)
            for k in range(context.shape[1]):
                place, row = context[t, k, 0], context[t, k, 1]
                row += ids[place] if place >= 0 else 0
                store(dtable, row, c, load(dtable, row, c) + g)


# --- blocks ----------------------------------------------------------------------------------------------------------


def blocks_forward(
    ids,
    gain_rows,
    states,
    attention_outputs,
    statistics,
    out,
    weight_arrays,
    places,
    context,
    cos_sin,
    eps,
    beta,
    save_for_backward,
    first,
    last,
):
    """Images `first` to `last` - 1 through all blocks and the last norm: ids -> `out` (B, T, C).

    Args:
        ids: Prompt and tokens (B, T).
        gain_rows: Which row of the gains is each image's (B,).
        states, attention_outputs, statistics: Filled in if `save_for_backward`, otherwise empty: inputs of the blocks
            and output of the last (B, L + 1, rows, C), where rows is T rounded up to a multiple of LANES; outputs of
            attention (B, L, rows, C); maxima and inverse sums of its softmax (B, L, 2 H, PAD_ROWS + rows).
        weight_arrays: The fields of `BlockWeights`, with the scale of the scores in the queries' matrices and biases.
        places: Rows of the neighbors (T, K); 0 is outside.
        context: For `embed`.
        cos_sin: For `apply_rotary`.
    """
    weights = BlockWeights(*weight_arrays)  # not in the signature: numba's cache would know another import's class
    (length, channels), inner = out.shape[1:], weights.up_weight.shape[2]
    rows = (length + LANES - 1) // LANES * LANES
    heads = channels // HEAD_SIZE
    x, normed = empty(rows, channels), empty(rows, channels)
    attention_output, mixed = zeros(rows, channels), empty(rows, channels)
    qkv, hidden = zeros(PAD_ROWS + rows, 3 * channels), empty(rows, inner)
    statistic, scales = zeros(2 * heads, PAD_ROWS + rows), np.empty(rows, float32)
    scores, columns = empty(rows + LANES, LANES), empty(HEAD_SIZE, LANES)
    for image in range(first, last):
        gain_row = gain_rows[image]
        fill(x, length, 0)
        embed(ids[image], weights.context_table[0], weights.row_table[0], weights.column_table[0], context, x)
        if save_for_backward:
            copy(x, states[image, 0])
        for layer in range(len(weights.qkv_weight)):
            normalize(x, eps, weights.attention_gain[layer], gain_row, normed, scales)
            linear(normed, weights.qkv_weight[layer], weights.qkv_bias[layer], qkv, PAD_ROWS, False)
            apply_rotary(qkv, cos_sin, length, 1)
            attend(qkv, statistic[:heads], statistic[heads:], attention_output, scores, columns, length)
            copy(attention_output, mixed)
            mix(qkv, weights.mixing_weight[layer], places, mixed)
            if save_for_backward:
                copy(attention_output, attention_outputs[image, layer])
                copy(statistic, statistics[image, layer])
            linear(mixed, weights.out_weight[layer], weights.out_bias[layer], x, 0, True)
            normalize(x, eps, weights.mlp_gain[layer], gain_row, normed, scales)
            linear(normed, weights.up_weight[layer], weights.up_bias[layer], hidden, 0, False)
            activate(hidden, beta, hidden, False)
            linear(hidden, weights.down_weight[layer], weights.down_bias[layer], x, 0, True)
            if save_for_backward:
                copy(x, states[image, layer + 1])
        normalize(x, eps, weights.last_gain[0], gain_row, normed, scales)
        copy(normed, out[image])


def blocks_backward(
    ids,
    gain_rows,
    states,
    attention_outputs,
    statistics,
    weight_arrays,
    transposed_arrays,
    places,
    context,
    cos_sin,
    eps,
    beta,
    grad,
    grad_arrays,
    first,
    last,
):
    """Groups `first` to `last` - 1: d loss / d out (B, T, C), `grad`, -> `grads`.

    Args:
        states, attention_outputs, statistics: As `blocks_forward` saved them. Everything else is recomputed.
        transposed_arrays: The fields of `TransposedWeights`.
        grad_arrays: The fields of `BlockWeights`, gradients for each group of images (groups, L, ...), zero at first.
    """
    weights, transposed = BlockWeights(*weight_arrays), TransposedWeights(*transposed_arrays)
    grads = BlockWeights(*grad_arrays)
    (rows, channels), inner, images = states.shape[2:], weights.up_weight.shape[2], len(states)
    heads = channels // HEAD_SIZE
    normed, scales = empty(rows, channels), np.empty(rows, float32)  # of the attention's input
    normed2, scales2 = empty(rows, channels), np.empty(rows, float32)  # of the MLP's input
    dnormed, after = empty(rows, channels), empty(rows, channels)
    hidden, derivative = empty(rows, inner), empty(rows, inner)
    dhidden, no_bias = empty(rows, inner), zeros(1, max(channels, inner))
    qkv, dqkv = zeros(PAD_ROWS + rows, 3 * channels), zeros(PAD_ROWS + rows, 3 * channels)
    mixed, dmixed = empty(rows, channels), zeros(PAD_ROWS + rows, channels)
    deltas, columns = zeros(1, PAD_ROWS + rows), empty(HEAD_SIZE, LANES)
    dscores, pairs = empty(rows, rows), empty(rows // 2, LANES)
    dx, length = empty(rows, channels), grad.shape[1]
    for group in range(first, last):
        for image in range(group * images // len(grads.qkv_weight), (group + 1) * images // len(grads.qkv_weight)):
            x, gain_row = states[image, len(weights.qkv_weight)], gain_rows[image]
            fill(dx, 0, 0)
            normalize(x, eps, weights.last_gain[0], gain_row, normed, scales)
            add_normalize_gradient(
                x, scales, weights.last_gain[0], gain_row, grad[image], dx, grads.last_gain[group, 0]
            )
            for layer in range(len(weights.qkv_weight) - 1, -1, -1):
                x, attention_output = states[image, layer], attention_outputs[image, layer]
                statistic = statistics[image, layer]
                normalize(x, eps, weights.attention_gain[layer], gain_row, normed, scales)
                linear(normed, weights.qkv_weight[layer], weights.qkv_bias[layer], qkv, PAD_ROWS, False)
                apply_rotary(qkv, cos_sin, length, 1)
                copy(attention_output, mixed)
                copy(x, after)
                mix(qkv, weights.mixing_weight[layer], places, mixed)
                linear(mixed, weights.out_weight[layer], weights.out_bias[layer], after, 0, True)
                normalize(after, eps, weights.mlp_gain[layer], gain_row, normed2, scales2)
                linear(normed2, weights.up_weight[layer], weights.up_bias[layer], hidden, 0, False)
                activate(hidden, beta, derivative, True)

                add_outer(hidden, dx, 0, grads.down_weight[group, layer], grads.down_bias[group, layer])
                linear(dx, transposed.down[layer], no_bias, dhidden, 0, False)
                multiply(dhidden, derivative)
                add_outer(normed2, dhidden, 0, grads.up_weight[group, layer], grads.up_bias[group, layer])
                linear(dhidden, transposed.up[layer], no_bias, dnormed, 0, False)
                add_normalize_gradient(
                    after, scales2, weights.mlp_gain[layer], gain_row, dnormed, dx, grads.mlp_gain[group, layer]
                )

                add_outer(mixed, dx, 0, grads.out_weight[group, layer], grads.out_bias[group, layer])
                linear(dx, transposed.out[layer], no_bias, dmixed, PAD_ROWS, False)
                softmax = statistic[:heads], statistic[heads:]
                attend_backward(qkv, *softmax, attention_output, dmixed, dqkv, deltas, columns, dscores, pairs, length)
                apply_rotary(dqkv, cos_sin, length, -1)
                mix_backward(
                    qkv, weights.mixing_weight[layer], places, dmixed, dqkv, grads.mixing_weight[group, layer]
                )
                add_outer(normed, dqkv, PAD_ROWS, grads.qkv_weight[group, layer], grads.qkv_bias[group, layer])
                linear(dqkv[PAD_ROWS:], transposed.qkv[layer], no_bias, dnormed, 0, False)
                add_normalize_gradient(
                    x, scales, weights.attention_gain[layer], gain_row, dnormed, dx, grads.attention_gain[group, layer]
                )
            tables = grads.context_table[group, 0], grads.row_table[group, 0], grads.column_table[group, 0]
            embed_backward(ids[image], context, dx, *tables)


def _types() -> tuple:
    """numba's types of `ids` to `statistics`, and of `places` to `beta`."""
    four, number, real = numba.float32[:, :, :, ::1], numba.int64, numba.float32
    saved = (number[:, ::1], number[::1], four, four, four)
    return saved, (number[:, ::1], number[:, :, ::1], real[:, :, ::1], real, real)


@functools.cache
def forward_kernel():
    """Compile `blocks_forward`."""
    (saved, tables), three, number = _types(), numba.float32[:, :, ::1], numba.int64
    weights = numba.types.UniTuple(three, len(BlockWeights._fields))
    return compile_kernel(blocks_forward, (*saved, three, weights, *tables, numba.boolean, number, number))


@functools.cache
def backward_kernel():
    """Compile `blocks_backward`."""
    (saved, tables), three, number = _types(), numba.float32[:, :, ::1], numba.int64
    weights = numba.types.UniTuple(three, len(BlockWeights._fields))
    transposed = numba.types.UniTuple(three, len(TransposedWeights._fields))
    grads = numba.types.UniTuple(numba.float32[:, :, :, ::1], len(BlockWeights._fields))
    return compile_kernel(blocks_backward, (*saved, weights, transposed, *tables, three, grads, number, number))
