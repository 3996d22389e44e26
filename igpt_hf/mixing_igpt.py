"""Causal depthwise convolution over the grid of tokens on the CPU, forward and backward, compiled by numba.

Position t (row r, column c of the grid) receives  out[t, d] = sum_k weight[d, k] value[row r + rows[k], column c +
columns[k], d]  from the K tokens known before it. torch's general convolution spends most of its time on layouts.

How it becomes fast: an image is laid out once with a border of zeros, (rows + radius, (grid + 2 radius) * D), so that a
neighbour is a constant shift in memory and the border needs no test. All columns and channels of a row are then one
long loop of multiply-adds, grid * D numbers, with the weights repeated for each column.

One image is one task with a fixed order of operations: results do not depend on the number of threads.
"""

import functools

import numpy as np
import torch

from .attention_igpt import is_kernel_usable, numba, run_tasks


float32 = np.float32


@functools.cache
def make_kernels():
    """Compile (forward, backward)."""

    def lay_out(values, border, radius, grid, channels):
        """values[1:] (T, D), the image tokens in raster order -> border, with zeros around them."""
        border[:] = float32(0)
        for t in range(1, len(values)):
            row, column = (t - 1) // grid, (t - 1) % grid
            for d in range(channels):
                border[radius + row, (radius + column) * channels + d] = values[t, d]

    if numba is not None:
        lay_out = numba.njit(inline="always")(lay_out)

    def forward(value, weight, offsets, radius, grid, out, first, last):
        length, channels = value.shape[1:]
        rows, width = (length + grid - 1) // grid, grid * channels
        border = np.empty((radius + rows + 1, width + 2 * radius * channels), float32)
        total = np.empty(width, float32)
        for image in range(first, last):
            lay_out(value[image], border, radius, grid, channels)
            for row in range(rows):
                total[:] = float32(0)
                for k in range(len(offsets)):
                    start = (radius + offsets[k, 1]) * channels
                    source = border[radius + row + offsets[k, 0], start : start + width]
                    factor = weight[k]
                    for i in range(width):
                        total[i] += factor[i] * source[i]
                for column in range(min(grid, length - row * grid)):
                    for d in range(channels):
                        out[image, row * grid + column, d] = total[column * channels + d]

    def backward(value, weight, offsets, radius, grid, grad, dvalue, dweight, first, last):
        length, channels = value.shape[1:]
        rows, width = (length + grid - 1) // grid, grid * channels
        border = np.empty((radius + rows + 1, width + 2 * radius * channels), float32)
        dborder = np.empty_like(border)
        gradient = np.empty(width, float32)
        for image in range(first, last):
            lay_out(value[image], border, radius, grid, channels)
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
            dvalue[image, 0] = float32(0)  # the prompt is nobody's neighbour
            for t in range(1, length):
                row, column = (t - 1) // grid, (t - 1) % grid
                for d in range(channels):
                    dvalue[image, t, d] = dborder[radius + row, (radius + column) * channels + d]

    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy", "cache": True}
    strided, plain, table = numba.float32[:, :, :], numba.float32[:, :, ::1], numba.float32[:, ::1]
    offsets, integer = numba.int64[:, ::1], numba.int64
    geometry = (strided, table, offsets, integer, integer)
    return (
        numba.njit((*geometry, plain, integer, integer), **options)(forward),
        numba.njit((*geometry, plain, plain, plain, integer, integer), **options)(backward),
    )


class MixNeighbors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, weight, offsets, grid):
        value = value.detach()
        repeated = weight.detach().T.repeat(1, grid)  # (K, grid * D)
        places = np.array(offsets, dtype=np.int64)  # (K, 2)
        geometry = (value.numpy(), repeated.numpy(), places, int(-places.min()), grid)
        out = value.new_empty(value.shape)
        run_tasks(make_kernels()[0], (*geometry, out.numpy()), len(value))
        ctx.save_for_backward(value, repeated)
        ctx.places, ctx.grid = places, grid
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        value, repeated = ctx.saved_tensors
        geometry = (value.numpy(), repeated.numpy(), ctx.places, int(-ctx.places.min()), ctx.grid)
        dvalue = value.new_empty(value.shape)
        drepeated = value.new_empty(len(value), *repeated.shape)  # (B, K, grid * D)
        arrays = (*geometry, grad.contiguous().numpy(), dvalue.numpy(), drepeated.numpy())
        run_tasks(make_kernels()[1], arrays, len(value))
        dweight = drepeated.view(len(value), len(repeated), ctx.grid, -1).sum((0, 2))  # (K, D)
        return dvalue, dweight.T, None, None


def mix_neighbors(value: torch.Tensor, weight: torch.Tensor, offsets: list[tuple[int, int]], grid: int) -> torch.Tensor:
    """Mix the values of neighbours, each channel for itself: (B, T, D), (D, K), K offsets -> (B, T, D).

    `offsets` are (row, column) steps to tokens known before, within a radius; `grid` is the number of tokens in a row.
    """
    return MixNeighbors.apply(value, weight, offsets, grid)


__all__ = ["is_kernel_usable", "mix_neighbors"]
