"""Random deformations of small gray shapes, in torch: many images at a time, on a GPU as well.

As `igpt_hf.data.augmentation.random_shape`: an image is enlarged and its edges made sharp, what is turned, sheared and
stretched is this shape, so that the ink's longest side and its center of mass remain, and then it is shrunk. In
addition the shape is bent by a smooth random field, which moves both a little, and the level that makes its edges
sharp is random, so that strokes become thinner or thicker.

Shapes: B images of S x S pixels; L = SUPERSAMPLING * S; coordinates run from -1 to 1, as `grid_sample` has them.
"""

import math

import torch
from torch.nn import functional


SUPERSAMPLING = 4  # pixels of a shape for each pixel of an image, in both directions
BEND_POINTS = 5  # of the field that bends a shape, in both directions


def deform(white: torch.Tensor, strength: float) -> torch.Tensor:
    """Deform shapes at random: gray levels from 0 to 1, (B, S, S) -> the same.

    Args:
        white: Gray levels.
        strength: Of `random_matrices`; the level of the edges is 0.5 +- strength, and the field that bends has a
            standard deviation of 4 * strength pixels at its points.
    """
    batch, size, device = len(white), white.shape[-1], white.device
    large = size * SUPERSAMPLING
    level = 0.5 + strength * (2 * torch.rand(batch, 1, 1, 1, device=device) - 1)
    enlarged = functional.interpolate(white[:, None], size=(large, large), mode="bilinear", align_corners=False)
    shape = (enlarged > level).float()  # (B, 1, L, L)

    places, ink = places_of_pixels(large, device), shape.flatten(1)  # (L * L, 2), (B, L * L)
    center = ink @ places / ink.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 2)
    matrix = random_matrices(batch, strength, device)
    matrix = matrix * (longest_side(places, ink) / longest_side(places @ matrix.mT, ink))[:, None, None]
    sources = (places - center[:, None]) @ inverse(matrix).mT + center[:, None]  # from where each pixel is taken

    bend = torch.randn(batch, 2, BEND_POINTS, BEND_POINTS, device=device) * (strength * 8 / size)
    bend = functional.interpolate(bend, size=(large, large), mode="bicubic", align_corners=True)
    grid = sources.view(batch, large, large, 2) + bend.permute(0, 2, 3, 1)
    moved = functional.grid_sample(shape, grid, mode="bilinear", align_corners=False)[:, 0]  # (B, L, L)
    shrink = shrinking_matrix(size, device)
    return (shrink @ moved @ shrink.mT).clamp(0, 1)


def random_matrices(batch: int, strength: float, device) -> torch.Tensor:
    """Random rotations times shears times stretches, (B, 2, 2), as `igpt_hf.data.augmentation.random_matrix`."""
    angle, shear, *stretch = strength * torch.randn(4, batch, device=device).clamp(-2, 2)
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    slant = torch.stack([one, shear, zero, one], dim=1).view(-1, 2, 2)
    scale = torch.stack([stretch[0].exp(), zero, zero, stretch[1].exp()], dim=1).view(-1, 2, 2)
    return turn @ slant @ scale


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Of matrices (B, 2, 2), by Cramer's rule: `torch.linalg.inv` cannot be recorded in a CUDA graph."""
    (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
    adjugate = torch.stack([d, -b, -c, a], dim=-1).view(-1, 2, 2)
    return adjugate / (a * d - b * c)[:, None, None]


def places_of_pixels(large: int, device) -> torch.Tensor:
    """(x, y) of the pixels' centers, row by row: (L * L, 2)."""
    line = (torch.arange(large, device=device) + 0.5) / large * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def longest_side(points: torch.Tensor, ink: torch.Tensor) -> torch.Tensor:
    """Of the box around those points, (L * L, 2) or (B, L * L, 2), that have ink, (B, L * L) -> (B,)."""
    no_ink = (ink < 0.5)[..., None]
    sides = points.masked_fill(no_ink, -9).amax(dim=1) - points.masked_fill(no_ink, 9).amin(dim=1)  # (B, 2)
    return sides.amax(dim=1).clamp(min=0.05)


def shrinking_matrix(size: int, device) -> torch.Tensor:
    """Weights of Hamming-windowed resampling, as Pillow's, from L pixels to S: (S, L)."""
    centers = (torch.arange(size * SUPERSAMPLING, device=device) + 0.5) / SUPERSAMPLING
    x = centers - torch.arange(size, device=device)[:, None] - 0.5
    weights = torch.where(x.abs() < 1, torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x)), 0.0)
    return weights / weights.sum(dim=1, keepdim=True)
