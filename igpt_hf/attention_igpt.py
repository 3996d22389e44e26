"""Causal self-attention of small heads on the CPU, forward and backward, compiled by numba.

`causal_attention(query, key, value)` gives the same numbers as `torch.nn.functional.scaled_dot_product_attention`
with `is_causal=True`, several times faster for heads of 8 channels, where torch spends its time on overhead.

Forward, for one image and one head:  out[i] = sum_j p[i, j] value[j]  with  p[i, j] = exp(score[i, j] - lse[i]),
score[i, j] = query[i] . key[j] / sqrt(D)  for j <= i,  and  lse[i] = log(sum_j exp(score[i, j])).
Backward keeps no T x T matrix: as in FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135) the
probabilities are computed again from the scores and the saved `lse`. With grad = d loss / d out,

    delta[i] = grad[i] . out[i]         dscore[i, j] = p[i, j] (grad[i] . value[j] - delta[i])
    dquery[i] = sum_j dscore[i, j] key[j] / sqrt(D)
    dkey[j] = sum_i dscore[i, j] query[i] / sqrt(D)        dvalue[j] = sum_i p[i, j] grad[i]

How it becomes fast: LANES = 16 float32 numbers fit one AVX-512 register, so 16 queries are handled side by side, one
per lane, with no sum across lanes. Their vectors are stored as columns, (D, LANES), and visit the keys in tiles of
TILE = 4 rows, (TILE, D). `dots` turns a column block and a row tile into scores, `accumulate` adds the rows, weighted
by probabilities, to column sums. For dkey and dvalue the roles swap: keys are the columns, queries the rows. Tiles
that lie entirely above the diagonal are skipped. Scores are kept in base 2 (query is multiplied by log2(e)), because
2**x is cheap: the integer part of x is written into the exponent bits of the float.

One (image, head) pair is one task with a fixed order of operations, so that results do not depend on the number of
threads. The kernels hold no Python lock, so plain Python threads run them, also when several threads call at once.
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
except ImportError:  # then is_kernel_usable() is False, and the caller uses torch's attention
    numba = None

LANES, TILE = 16, 4
MAX_HEAD_SIZE = 64
float32 = np.float32
MINUS_INFINITY = float32(-np.inf)


def inlined(function):
    """Marks a helper whose body numba copies into the calling kernel; without numba nothing happens."""
    return numba.njit(inline="always")(function) if numba is not None else function


@inlined
def exp2(x):
    """2**x for x <= 0 with a relative error of 2e-7, and exactly 0 below -127."""
    x = max(x, float32(-127))
    shifted = x + float32(12582912)  # 1.5 * 2**23: rounds x to an integer n, which lands in the lowest bits
    r = x - (shifted - float32(12582912))  # x = n + r with |r| <= 1/2
    p = float32(1.326471444e-3)  # 2**r by a polynomial of least relative error with p(0) = 1
    p = p * r + float32(9.671508966e-3)
    p = p * r + float32(5.550733740e-2)
    p = p * r + float32(2.402224214e-1)
    p = p * r + float32(6.931469776e-1)
    p = p * r + float32(1)
    bits = float32(p).view(np.int32) + (float32(shifted).view(np.int32) << np.int32(23))  # adds n to the exponent
    return np.int32(bits).view(np.float32)


@inlined
def dots(columns, rows, first, result, size, step):
    """result[t, lane] = sum_d columns[d, lane] rows[t, first + d]; `step` channels at a time stay in registers."""
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
                total[d, lane] += (w0 * rows[0, first + d] + w1 * rows[1, first + d]
                                   + w2 * rows[2, first + d] + w3 * rows[3, first + d])  # fmt: skip


@functools.cache
def make_kernels(size):
    """Compiles (forward, backward) for heads of `size` channels: with a constant size the loops can be unrolled."""
    step = next(s for s in range(8, 0, -1) if size % s == 0)
    scale, scale_base2, ln2 = size**-0.5, size**-0.5 * math.log2(math.e), math.log(2)

    def forward(query, key, value, out, lse, first, last):
        heads, length = query.shape[1:3]
        blocks = (length + LANES - 1) // LANES
        rows = np.zeros((length + TILE, 2 * size), float32)  # key and value
        scores = np.empty((length + TILE, LANES), float32)
        columns = np.empty((size, LANES), float32)  # query
        total = np.empty((size, LANES), float32)  # out
        maximum = np.empty(LANES, float32)
        norm = np.empty(LANES, float32)
        for task in range(first, last):
            image, head = task // heads, task % heads
            for j in range(length):
                for d in range(size):
                    rows[j, d] = key[image, head, j, d]
                    rows[j, size + d] = value[image, head, j, d]
            for block in range(blocks):
                start = length - (blocks - block) * LANES  # negative in the first block, where it is cheapest
                for lane in range(LANES):
                    i = max(start + lane, 0)
                    for d in range(size):
                        columns[d, lane] = query[image, head, i, d] * float32(scale_base2)
                maximum[:] = MINUS_INFINITY
                for j in range(0, start + LANES, TILE):
                    s = scores[j : j + TILE]
                    dots(columns, rows[j : j + TILE], 0, s, size, step)
                    for lane in range(LANES):
                        highest = maximum[lane]
                        for t in range(TILE):
                            x = s[t, lane] if float32(j - start) + float32(t) <= float32(lane) else MINUS_INFINITY
                            s[t, lane] = x
                            highest = max(highest, x)
                        maximum[lane] = highest
                norm[:] = float32(0)
                total[:] = float32(0)
                for j in range(0, start + LANES, TILE):
                    s = scores[j : j + TILE]
                    for lane in range(LANES):
                        n = norm[lane]
                        for t in range(TILE):
                            p = exp2(s[t, lane] - maximum[lane])
                            s[t, lane] = p
                            n += p
                        norm[lane] = n
                    accumulate(s, rows[j : j + TILE], size, total, size, step)
                for lane in range(max(-start, 0), LANES):
                    lse[image, head, start + lane] = maximum[lane] + np.log2(norm[lane])
                    for d in range(size):
                        out[image, start + lane, head, d] = total[d, lane] / norm[lane]

    def backward(query, key, value, out, lse, grad, dquery, dkey, dvalue, first, last):
        heads, length = query.shape[1:3]
        blocks = (length + LANES - 1) // LANES
        kv = np.zeros((length + LANES, 2 * size), float32)  # key and value, then zeros
        qg = np.zeros((length + TILE, 2 * size + 2), float32)  # query, grad, lse, delta, then zeros
        a, b = np.empty((size, LANES), float32), np.empty((size, LANES), float32)
        da, db = np.empty((size, LANES), float32), np.empty((size, LANES), float32)
        lses, deltas = np.empty(LANES, float32), np.empty(LANES, float32)
        p, ds = np.empty((TILE, LANES), float32), np.empty((TILE, LANES), float32)
        for task in range(first, last):
            image, head = task // heads, task % heads
            for i in range(length):
                delta = float32(0)
                for d in range(size):
                    kv[i, d] = key[image, head, i, d]
                    kv[i, size + d] = value[image, head, i, d]
                    qg[i, d] = query[image, head, i, d] * float32(scale_base2)
                    qg[i, size + d] = grad[image, i, head, d]
                    delta += grad[image, i, head, d] * out[image, i, head, d]
                qg[i, 2 * size] = lse[image, head, i]
                qg[i, 2 * size + 1] = delta
            for block in range(blocks):  # columns: query and grad; rows: key and value
                start = length - (blocks - block) * LANES
                for lane in range(LANES):
                    i = max(start + lane, 0)
                    for d in range(size):
                        a[d, lane] = qg[i, d]
                        b[d, lane] = qg[i, size + d]
                    lses[lane] = qg[i, 2 * size]
                    deltas[lane] = qg[i, 2 * size + 1]
                da[:] = float32(0)
                for j in range(0, start + LANES, TILE):
                    rows = kv[j : j + TILE]
                    dots(a, rows, 0, p, size, step)
                    dots(b, rows, size, ds, size, step)
                    for lane in range(LANES):
                        for t in range(TILE):
                            x = p[t, lane] if float32(j - start) + float32(t) <= float32(lane) else MINUS_INFINITY
                            ds[t, lane] = exp2(x - lses[lane]) * (ds[t, lane] - deltas[lane])
                    accumulate(ds, rows, 0, da, size, step)
                for lane in range(max(-start, 0), LANES):
                    for d in range(size):
                        dquery[image, start + lane, head, d] = da[d, lane] * float32(scale)
            for start in range(0, length, LANES):  # columns: key and value; rows: query, grad, lse, delta
                block_rows = kv[start : start + LANES]
                for lane in range(LANES):
                    for d in range(size):
                        a[d, lane] = block_rows[lane, d]
                        b[d, lane] = block_rows[lane, size + d]
                da[:] = float32(0)
                db[:] = float32(0)
                for i in range(start, length, TILE):
                    rows = qg[i : i + TILE]
                    dots(a, rows, 0, p, size, step)
                    dots(b, rows, size, ds, size, step)
                    for lane in range(LANES):
                        for t in range(TILE):
                            x = p[t, lane] if float32(lane) <= float32(i - start) + float32(t) else MINUS_INFINITY
                            probability = exp2(x - rows[t, 2 * size])
                            p[t, lane] = probability
                            ds[t, lane] = probability * (ds[t, lane] - rows[t, 2 * size + 1])
                    accumulate(ds, rows, 0, da, size, step)
                    accumulate(p, rows, size, db, size, step)
                for lane in range(min(LANES, length - start)):
                    for d in range(size):
                        dkey[image, start + lane, head, d] = da[d, lane] * float32(ln2)  # undoes log2(e) in query
                        dvalue[image, start + lane, head, d] = db[d, lane]

    tensor4, tensor3, integer = numba.float32[:, :, :, :], numba.float32[:, :, :], numba.int64
    signatures = [(tensor4,) * 4 + (tensor3, integer, integer),
                  (tensor4,) * 4 + (tensor3,) + (tensor4,) * 4 + (integer, integer)]  # fmt: skip
    kernels = []
    for function, signature in zip((forward, backward), signatures):
        options = dict(nogil=True, fastmath={"contract"}, error_model="numpy")
        try:
            kernel = numba.njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError, ImportError):  # no folder for a cache, or one of another module's name
            kernel = numba.njit(signature, **options)(function)
        kernels.append(kernel)
    return tuple(kernels)


@functools.cache
def thread_pool(process, threads):
    """One pool per process: a forked process does not inherit the threads of its parent."""
    return ThreadPoolExecutor(threads, thread_name_prefix="attention")


def run_tasks(kernel, arrays, tasks):
    """kernel(*arrays, first, last) over all tasks, on torch's number of threads; the calling thread takes part."""
    threads = max(1, min(torch.get_num_threads(), tasks))
    share = -(-tasks // (4 * threads))  # several shares per thread, so that a delayed thread gets fewer of them
    starts = iter(range(0, tasks, share or 1))  # drawn from by all threads

    def work():
        for start in starts:
            kernel(*arrays, start, min(start + share, tasks))

    helpers = [thread_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


class CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        batch, heads, length, size = query.shape
        out = query.new_empty(batch, length, heads, size)
        lse = query.new_empty(batch, heads, length)
        arrays = [x.detach().numpy() for x in (query, key, value, out, lse)]
        run_tasks(make_kernels(size)[0], arrays, batch * heads)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, *_, out, _ = ctx.saved_tensors
        dquery, dkey, dvalue = (torch.empty_like(out) for _ in range(3))
        arrays = [x.detach().numpy() for x in (*ctx.saved_tensors, grad, dquery, dkey, dvalue)]
        batch, heads, _, size = query.shape
        run_tasks(make_kernels(size)[1], arrays, batch * heads)
        return dquery.transpose(1, 2), dkey.transpose(1, 2), dvalue.transpose(1, 2)


def is_kernel_usable(*tensors: Tensor) -> bool:
    """Whether numba is installed and, if tensors are given, whether `causal_attention` can take them."""
    if numba is None or numba.config.DISABLE_JIT or torch.compiler.is_compiling():
        return False
    return all(
        x.device.type == "cpu" and x.dtype == torch.float32 and x.shape == tensors[0].shape and x.shape[-1] <= MAX_HEAD_SIZE
        for x in tensors
    )


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax(query key^T / sqrt(D)) value, each position seeing itself and earlier ones: (B, H, T, D) -> (B, T, H, D)."""
    return CausalAttention.apply(query, key, value)


is_available = is_kernel_usable
