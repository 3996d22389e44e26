"""Binary pixels <-> tokens, losslessly: a token is a block of pixels."""

import numpy as np


def pixels_to_tokens(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """Pack binary images into tokens: (n, height, width) of 0/1 -> (n, height * width / patch_size**2)."""
    n, height, width = pixels.shape
    p = patch_size
    blocks = pixels.reshape(n, height // p, p, width // p, p).transpose(0, 1, 3, 2, 4)  # (n, rows, columns, p, p)
    bits = blocks.reshape(n, -1, p * p)
    weights = 1 << np.arange(p * p)
    dtype = np.uint8 if p * p <= 8 else np.uint16
    return (bits.astype(np.int64) @ weights).astype(dtype)


def tokens_to_pixels(tokens: np.ndarray, patch_size: int, image_size: int) -> np.ndarray:
    """Unpack tokens into binary images: (n, tokens) -> (n, image_size, image_size) of 0/1, uint8."""
    p, grid = patch_size, image_size // patch_size
    bits = (tokens[..., None].astype(np.int64) >> np.arange(p * p)) & 1  # (n, tokens, p * p)
    blocks = bits.reshape(-1, grid, grid, p, p).transpose(0, 1, 3, 2, 4)  # (n, rows, p, columns, p)
    return blocks.reshape(-1, image_size, image_size).astype(np.uint8)
