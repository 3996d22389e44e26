"""Images that grow token by token, as the model samples them: an animated GIF."""

import io

import numpy as np
from PIL import Image


TOKENS_PER_FRAME = 4
MILLISECONDS, LAST = 120, 2500  # that a frame is shown; the finished images stay for a while
UNKNOWN, BLACK, WHITE, CURSOR = range(4)
PALETTE = [58, 58, 64, 0, 0, 0, 255, 255, 255, 255, 140, 0]  # red, green, blue of each


def growing(
    pixels: np.ndarray, processor, columns: int = 5, scale: int = 4, given: np.ndarray | None = None
) -> list[Image.Image]:
    """Frames of an animation that uncovers images in the order of their tokens.

    Args:
        pixels: (n, height, width) of 0/1.
        columns: Images in a row.
        scale: Pixels of a frame for each pixel of an image, in both directions.
        given: What is seen from the beginning, booleans (height, width).
    """
    patch, grid = processor.patch_size, processor.grid_size
    order = np.arange(grid**2).reshape(grid, grid).repeat(patch, 0).repeat(patch, 1)  # token of each pixel
    given = np.zeros_like(order, dtype=bool) if given is None else given
    start = int(order[~given].min(initial=grid**2))
    frames = []
    for known in [*range(start, grid**2, TOKENS_PER_FRAME), grid**2]:
        shown = np.where((order < known) | given, np.where(pixels == 1, WHITE, BLACK), UNKNOWN)
        shown[:, (order == known) & ~given] = CURSOR  # the token to be sampled next
        blank = -len(shown) % columns
        padded = np.pad(shown, ((0, blank), (1, 1), (1, 1)), constant_values=UNKNOWN)
        rows = [np.concatenate(list(padded[i : i + columns]), axis=1) for i in range(0, len(padded), columns)]
        frame = Image.fromarray(np.concatenate(rows).astype(np.uint8).repeat(scale, 0).repeat(scale, 1))
        frame.putpalette(PALETTE)
        frames.append(frame)
    return frames


def save_gif(frames: list[Image.Image], file):
    """Write frames to a path or an open file, as a GIF that repeats."""
    first, *others = frames
    times = [MILLISECONDS] * len(others) + [LAST]
    first.save(file, format="GIF", save_all=True, append_images=others, duration=times, loop=0, optimize=True)


def growing_gif(pixels: np.ndarray, processor, columns: int, given: np.ndarray | None = None) -> bytes:
    """The file of the animation of images (n, height, width) of 0/1."""
    file = io.BytesIO()
    save_gif(growing(pixels, processor, columns, given=given), file)
    return file.getvalue()
