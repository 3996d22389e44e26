"""Attention with the values of the neighbours mixed in, on the CPU: a causal depthwise convolution compiled by numba.

Position t (row r, column c of the grid) receives  out[t, d] = sum_k weight[d, k] value[row r + rows[k], column c +
columns[k], d]  from the K tokens known before it. torch's general convolution spends most of its time on layouts.

How it becomes fast: an image is laid out once with a border of zeros, (rows + radius, (grid + 2 radius) * D), so that
a neighbour is a constant shift in memory and the border needs no test. All columns and channels of a row are then one
long loop of multiply-adds, grid * D numbers, with the weights repeated for each column.

One image is one task with a fixed order of operations: results do not depend on the number of threads.
"""

import functools

import numpy as np
import torch

from .attention_igpt import compile_kernel, inlined, make_kernels, numba, run_tasks


float32 = np.float32


@inlined
def lay_out(values, border, radius, grid):
    """values[1:] (T, D), image tokens in raster order -> border, with zeros around them; values[0] is the prompt."""
    channels = values.shape[1]
    border[:] = float32(0)
    for t in range(1, len(values)):
        row, column = (t - 1) // grid, (t - 1) % grid
        for d in range(channels):
            border[radius + row, (radius + column) * channels + d] = values[t, d]


@functools.cache
def make_mixing_kernels():
    """Compile (forward, backward); both add to what is there: to `out`, and to `dvalue`."""

    def forward(value, weight, offsets, out, first, last):
        length, channels = value.shape[1:]
        width = weight.shape[1]  # grid * D
        radius, grid = -offsets[0, 0], width // channels
        rows = (length + grid - 1) // grid
        border = np.empty((radius + rows + 1, width + 2 * radius * channels), float32)
        total = np.empty(width, float32)
        for image in range(first, last):
            lay_out(value[image], border, radius, grid)
            for row in range(rows):
                total[:] = float32(0)
                for k in range(len(offsets)):
                    start = (radius + offsets[k, 1]) * channels
                    source, factor = border[radius + row + offsets[k, 0], start : start + width], weight[k]
                    for i in range(width):
                        total[i] += factor[i] * source[i]
                for column in range(min(grid, length - row * grid)):
                    for d in range(channels):
                        out[image, row * grid + column, d] += total[column * channels + d]

    def backward(value, weight, offsets, grad, dvalue, dweight, first, last):
        length, channels = value.shape[1:]
        width = weight.shape[1]
        radius, grid = -offsets[0, 0], width // channels
        rows = (length + grid - 1) // grid
        border = np.empty((radius + rows + 1, width + 2 * radius * channels), float32)
        dborder = np.empty_like(border)
        gradient = np.empty(width, float32)
        for image in range(first, last):
            lay_out(value[image], border, radius, grid)
            dborder[:] = float32(0)
            dweight[image] = float32(0)
            for row in range(rows):
                gradient[:] = float32(0)
                for column in range(min(grid, length - row * grid)):
                    for d in range(channels):
                        gradient[column * channels + d] = grad[image, row * grid + column, d]
                for k in range(len(offsets)):
                    start, above = (radius + offsets[k, 1]) * channels, radius + row + offsets[k, 0]
                    source, dsource = border[above, start : start + width], dborder[above, start : start + width]
                    factor, dfactor = weight[k], dweight[image, k]
                    for i in range(width):
                        dsource[i] += factor[i] * gradient[i]
                    for i in range(width):
                        dfactor[i] += source[i] * gradient[i]
            for t in range(1, length):
                row, column = (t - 1) // grid, (t - 1) % grid
                for d in range(channels):
                    dvalue[image, t, d] += dborder[radius + row, (radius + column) * channels + d]

    strided, plain, table = numba.float32[:, :, :], numba.float32[:, :, ::1], numba.float32[:, ::1]
    geometry, number = (strided, table, numba.int64[:, ::1]), numba.int64
    return (
        compile_kernel(forward, (*geometry, plain, number, number)),
        compile_kernel(backward, (*geometry, plain, strided, plain, number, number)),
    )


class AttendAndMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, weight, offsets, grid):
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        batch, heads, length, size = query.shape
        attended, lse = qkv.new_empty(batch, length, heads, size), qkv.new_empty(batch, heads, length)
        run_tasks(make_kernels(size)[0], (query, key, value, attended, lse), batch * heads)
        repeated = weight.T.repeat(1, grid)  # (C, K) -> (K, grid * C)
        out = attended.flatten(2).clone()  # (B, T, C)
        run_tasks(make_mixing_kernels()[0], (qkv[:, :, 2].flatten(2), repeated, offsets, out), batch)
        ctx.save_for_backward(qkv, repeated, offsets, attended, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        qkv, repeated, offsets, attended, lse = ctx.saved_tensors
        batch, _, _, heads, size = qkv.shape
        grad = grad.contiguous()
        dqkv = torch.empty_like(qkv)
        tensors = (*qkv.permute(2, 0, 3, 1, 4), attended, lse, grad.view(attended.shape), *dqkv.unbind(2))
        run_tasks(make_kernels(size)[1], tensors, batch * heads)
        drepeated = qkv.new_empty(batch, *repeated.shape)
        tensors = (qkv[:, :, 2].flatten(2), repeated, offsets, grad, dqkv[:, :, 2].flatten(2), drepeated)
        run_tasks(make_mixing_kernels()[1], tensors, batch)
        dweight = drepeated.view(batch, len(repeated), -1, heads * size).sum((0, 2))  # (K, C)
        return dqkv, dweight.T, None, None


def attend_and_mix(qkv: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor, grid: int) -> torch.Tensor:
    """Causal attention plus the weighted values of the neighbours: float32 (B, T, 3, H, D) -> (B, T, H * D).

    Args:
        qkv: Query, key and value, contiguous.
        weight: Of each channel and neighbour, (H * D, K).
        offsets: (row, column) steps to the neighbours in raster order, int64 (K, 2).
        grid: Tokens in a row.
    """
    return AttendAndMix.apply(qkv, weight, offsets, grid)


__all__ = ["attend_and_mix"]
