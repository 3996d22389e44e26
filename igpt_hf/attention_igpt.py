"""Causal self-attention of small heads on the CPU, forward and backward, compiled by numba.

`causal_attention(query, key, value)` computes what `torch.nn.functional.scaled_dot_product_attention` computes with
`is_causal=True`, several times faster for heads of 8 channels.

For one image and one head, with D channels and score[i, j] = query[i] . key[j] / sqrt(D) for positions j <= i:

    lse[i] = log sum_j exp(score[i, j])     p[i, j] = exp(score[i, j] - lse[i])     out[i] = sum_j p[i, j] value[j]

As in FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135) the T x T matrix p is not kept for backward
but computed again from the scores and the saved lse. With grad = d loss / d out:

    delta[i] = grad[i] . out[i]             dscore[i, j] = p[i, j] (grad[i] . value[j] - delta[i])
    dquery[i] = sum_j dscore[i, j] key[j] / sqrt(D)
    dkey[j] = sum_i dscore[i, j] query[i] / sqrt(D)             dvalue[j] = sum_i p[i, j] grad[i]

Why it is fast: an AVX-512 register holds LANES = 16 numbers, so 16 queries are worked on side by side, one per lane,
and nothing is ever summed across lanes. Their vectors are the columns of a (D, LANES) array. They meet the keys in
tiles of TILE = 4 rows (TILE, D): `dots` gives the scores (TILE, LANES), `accumulate` adds the rows, weighted, to a
(D, LANES) sum; both are fully unrolled. Tiles above the diagonal are skipped. For dkey and dvalue keys and queries
swap roles. Scores and lse are kept in base 2 (the columns of a score carry the factor log2(e) / sqrt(D)), since 2**x
is cheap: the integer part of x goes into the exponent bits of a float.

One (image, head) is one task with a fixed order of operations: results do not depend on the number of threads. The
kernels release Python's lock, so that ordinary Python threads share the tasks, and several callers may call at once.
"""

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


try:
    import numba
except ImportError:  # then is_kernel_usable() is False, and the caller takes torch's attention
    numba = None

LANES, TILE = 16, 4
HEAD_SIZES = range(4, 33, 4)  # where it is faster than torch
float32 = np.float32
MINUS_INFINITY = float32(-np.inf)


def inlined(function):
    """Marks a helper whose body numba copies into the kernels."""
    return function if numba is None else numba.njit(inline="always")(function)


@inlined
def exp2(x):
    """2**x for x <= 0, to a relative error of 2e-7; exactly 0 from -127 down."""
    x = max(x, float32(-127))
    shifted = x + float32(1.5 * 2**23)  # has no bits left for fractions: its last bits are n, x rounded to an integer
    r = x - (shifted - float32(1.5 * 2**23))  # x = n + r, |r| <= 1/2
    p = float32(1.326471444e-3)  # 2**r: the polynomial of degree 5 with p(0) = 1 and the least relative error
    p = p * r + float32(9.671508966e-3)
    p = p * r + float32(5.550733740e-2)
    p = p * r + float32(2.402224214e-1)
    p = p * r + float32(6.931469776e-1)
    p = p * r + float32(1)
    bits = float32(p).view(np.int32) + (float32(shifted).view(np.int32) << np.int32(23))  # adds n to p's exponent
    return np.int32(bits).view(np.float32)


@inlined
def dots(columns, rows, first, result, size, step):
    """result[t, lane] = sum_d columns[d, lane] rows[t, first + d], `step` of the `size` channels d at a time."""
    for block in range(size // step):
        for lane in range(LANES):
            s0 = s1 = s2 = s3 = float32(0)
            if block > 0:
                s0, s1, s2, s3 = result[0, lane], result[1, lane], result[2, lane], result[3, lane]
            for i in range(step):
                d = block * step + i
                x = columns[d, lane]
                s0 += x * rows[0, first + d]
                s1 += x * rows[1, first + d]
                s2 += x * rows[2, first + d]
                s3 += x * rows[3, first + d]
            result[0, lane], result[1, lane], result[2, lane], result[3, lane] = s0, s1, s2, s3


@inlined
def accumulate(weights, rows, first, total, size, step):
    """total[d, lane] += sum_t weights[t, lane] rows[t, first + d]"""
    for block in range(size // step):
        for lane in range(LANES):
            w0, w1, w2, w3 = weights[0, lane], weights[1, lane], weights[2, lane], weights[3, lane]
            for i in range(step):
                d = block * step + i
                near = w0 * rows[0, first + d] + w1 * rows[1, first + d]
                total[d, lane] += near + w2 * rows[2, first + d] + w3 * rows[3, first + d]


@inlined
def copy(source, rows, first, size):
    """rows[i, first + d] = source[i, d]"""
    for i in range(len(source)):
        for d in range(size):
            rows[i, first + d] = source[i, d]


@inlined
def transpose(rows, first, factor, columns, size):
    """columns[d, lane] = factor rows[lane, first + d]"""
    for lane in range(LANES):
        for d in range(size):
            columns[d, lane] = rows[lane, first + d] * float32(factor)


@functools.cache
def make_kernels(size):
    """Compile (forward, backward) for heads of `size` channels; a constant size lets the compiler unroll the loops."""
    step = next(s for s in range(8, 0, -1) if size % s == 0)
    scale, scale_base2 = size**-0.5, size**-0.5 * math.log2(math.e)

    def forward(query, key, value, out, lse, first_task, last_task):
        heads, length = query.shape[1:3]
        padding = -length % LANES  # the first block of queries is the incomplete one: it has the fewest keys
        q = np.zeros((padding + length, size), float32)
        kv = np.zeros((length + TILE, 2 * size), float32)
        scores = np.empty((length + TILE, LANES), float32)
        columns, result = np.empty((2, size, LANES), float32)
        highest, norm = np.empty((2, LANES), float32)
        for task in range(first_task, last_task):
            image, head = task // heads, task % heads
            copy(query[image, head], q[padding:], 0, size)
            copy(key[image, head], kv, 0, size)
            copy(value[image, head], kv, size, size)
            for start in range(-padding, length, LANES):  # lane: query start + lane
                transpose(q[padding + start : padding + start + LANES], 0, scale_base2, columns, size)
                highest[:] = MINUS_INFINITY
                for j in range(0, start + LANES, TILE):  # t: key j + t
                    s = scores[j : j + TILE]
                    dots(columns, kv[j : j + TILE], 0, s, size, step)
                    for lane in range(LANES):
                        maximum = highest[lane]
                        for t in range(TILE):
                            x = s[t, lane] if float32(j - start) + float32(t) <= float32(lane) else MINUS_INFINITY
                            s[t, lane] = x
                            maximum = max(maximum, x)
                        highest[lane] = maximum
                norm[:] = float32(0)
                result[:] = float32(0)
                for j in range(0, start + LANES, TILE):
                    s = scores[j : j + TILE]
                    for lane in range(LANES):
                        total = norm[lane]
                        for t in range(TILE):
                            p = exp2(s[t, lane] - highest[lane])
                            s[t, lane] = p
                            total += p
                        norm[lane] = total
                    accumulate(s, kv[j : j + TILE], size, result, size, step)
                for lane in range(max(-start, 0), LANES):
                    lse[image, head, start + lane] = highest[lane] + np.log2(norm[lane])
                    for d in range(size):
                        out[image, start + lane, head, d] = result[d, lane] / norm[lane]

    def backward(query, key, value, out, lse, grad, dquery, dkey, dvalue, first_task, last_task):
        heads, length = query.shape[1:3]
        padding = -length % LANES
        qg = np.zeros((padding + length + TILE, 2 * size + 2), float32)  # query, grad, lse, delta
        kv = np.zeros((length + LANES, 2 * size), float32)
        columns1, columns2, total1, total2 = np.empty((4, size, LANES), float32)
        p, ds = np.empty((2, TILE, LANES), float32)
        lses, deltas = np.empty((2, LANES), float32)
        for task in range(first_task, last_task):
            image, head = task // heads, task % heads
            copy(key[image, head], kv, 0, size)
            copy(value[image, head], kv, size, size)
            copy(query[image, head], qg[padding:], 0, size)
            copy(grad[image, :, head], qg[padding:], size, size)
            for i in range(length):
                delta = float32(0)
                for d in range(size):
                    delta += qg[padding + i, size + d] * out[image, i, head, d]
                qg[padding + i, 2 * size] = lse[image, head, i]
                qg[padding + i, 2 * size + 1] = delta

            for start in range(-padding, length, LANES):  # lane: query start + lane
                block = qg[padding + start : padding + start + LANES]
                transpose(block, 0, scale_base2, columns1, size)
                transpose(block, size, 1, columns2, size)
                for lane in range(LANES):
                    lses[lane] = block[lane, 2 * size]
                    deltas[lane] = block[lane, 2 * size + 1]
                total1[:] = float32(0)
                for j in range(0, start + LANES, TILE):  # t: key j + t
                    rows = kv[j : j + TILE]
                    dots(columns1, rows, 0, p, size, step)
                    dots(columns2, rows, size, ds, size, step)
                    for lane in range(LANES):
                        for t in range(TILE):
                            x = p[t, lane] if float32(j - start) + float32(t) <= float32(lane) else MINUS_INFINITY
                            ds[t, lane] = exp2(x - lses[lane]) * (ds[t, lane] - deltas[lane])
                    accumulate(ds, rows, 0, total1, size, step)
                for lane in range(max(-start, 0), LANES):
                    for d in range(size):
                        dquery[image, start + lane, head, d] = total1[d, lane] * float32(scale)

            for start in range(0, length, LANES):  # lane: key start + lane
                block = kv[start : start + LANES]
                transpose(block, 0, scale_base2, columns1, size)
                transpose(block, size, 1, columns2, size)
                total1[:] = float32(0)
                total2[:] = float32(0)
                for i in range(start, length, TILE):  # t: query i + t
                    rows = qg[padding + i : padding + i + TILE]
                    dots(columns1, rows, 0, p, size, step)
                    dots(columns2, rows, size, ds, size, step)
                    for lane in range(LANES):
                        for t in range(TILE):
                            x = p[t, lane] if float32(lane) <= float32(i - start) + float32(t) else MINUS_INFINITY
                            p[t, lane] = exp2(x - rows[t, 2 * size])
                            ds[t, lane] = p[t, lane] * (ds[t, lane] - rows[t, 2 * size + 1])
                    accumulate(ds, rows, 0, total1, size, step)
                    accumulate(p, rows, size, total2, size, step)
                for lane in range(min(LANES, length - start)):
                    for d in range(size):
                        dkey[image, start + lane, head, d] = total1[d, lane] * float32(scale)
                        dvalue[image, start + lane, head, d] = total2[d, lane]

    array, statistics, number = numba.float32[:, :, :, :], numba.float32[:, :, :], numba.int64
    return (
        compile_kernel(forward, (*[array] * 4, statistics, number, number)),
        compile_kernel(backward, (*[array] * 4, statistics, *[array] * 4, number, number)),
    )


def compile_kernel(function, signature):
    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}  # contract: a * b + c in one rounding
    try:
        return numba.njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError, ImportError):  # no folder to cache in, or this file was cached under another name
        return numba.njit(signature, **options)(function)


@functools.cache
def thread_pool(process, threads):
    """One pool per process, since a forked process does not inherit the threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="attention")


def run_tasks(kernel, tensors, tasks):
    """Run all tasks on torch's number of threads, this one among them."""
    arrays = [x.detach().numpy() for x in tensors]
    threads = max(1, min(torch.get_num_threads(), tasks // 8))  # waking a thread costs about as much as 4 tasks
    share = max(1, tasks // (4 * threads))  # several shares per thread: one that is held up takes fewer of them
    starts = iter(range(0, tasks, share))  # all threads draw from it

    def work():
        for start in starts:
            kernel(*arrays, start, min(start + share, tasks))

    helpers = [thread_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # it has begun
            helper.result()


class CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        batch, heads, length, size = query.shape
        out, lse = query.new_empty(batch, length, heads, size), query.new_empty(batch, heads, length)
        run_tasks(make_kernels(size)[0], (query, key, value, out, lse), batch * heads)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        batch, length, heads, size = grad.shape
        grads = [grad.new_empty(grad.shape) for _ in range(3)]
        run_tasks(make_kernels(size)[1], (*ctx.saved_tensors, grad, *grads), batch * heads)
        return tuple(x.transpose(1, 2) for x in grads)


def is_kernel_usable(*tensors: Tensor) -> bool:
    """Whether numba is here and, of given tensors (query, key, ...), whether `causal_attention` takes them."""
    if numba is None or numba.config.DISABLE_JIT or torch.compiler.is_compiling():
        return False
    same = all(x.shape == tensors[0].shape and x.shape[-1] in HEAD_SIZES for x in tensors)
    return same and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of each position to itself and those before it: three float32 (B, H, T, D) -> (B, T, H, D)."""
    return CausalAttention.apply(query, key, value)
