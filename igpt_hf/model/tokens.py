"""Binary pixels <-> tokens, losslessly: a token is a block of pixels."""

import numpy as np


class TokenGrid:
    """Sizes and ids that follow from those of a subclass: `image_size`, `patch_size`, `num_labels` and `num_grids`."""

    image_size: int
    patch_size: int
    num_labels: int
    num_grids: int = 1

    @property
    def vocab_size(self) -> int:
        """Number of image tokens, one for each block of pixels; the width of the head."""
        return 2 ** (self.patch_size**2)

    @property
    def start_token_id(self) -> int:
        """Prompt id that asks for an image of any class (on the first grid); `vocab_size + label` asks for one."""
        return self.vocab_size + self.num_labels

    @property
    def num_prompts(self) -> int:
        """Prompts on all grids: those of the classes and the start token, which come again for each further grid."""
        return self.num_grids * (self.num_labels + 1)

    @property
    def grid_size(self) -> int:
        """Tokens per row and per column."""
        return self.image_size // self.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Tokens per image."""
        return self.grid_size**2

    @property
    def half_rows(self) -> int:
        """Rows of pixels in the upper half of an image, whole blocks."""
        return self.grid_size // 2 * self.patch_size

    def check_sizes(self):
        """Raise ValueError unless the sizes fit together."""
        if self.patch_size not in (1, 2, 3, 4):
            raise ValueError(
                f"patch_size must be 1, 2, 3 or 4 (a vocabulary of 2**(patch_size**2)), got {self.patch_size}."
            )
        if self.image_size <= 0 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a positive multiple of patch_size={self.patch_size}, got {self.image_size}. "
                f"Use {max(1, self.image_size // self.patch_size) * self.patch_size}, or another patch_size."
            )
        most = 2 * self.patch_size**2
        if not 1 <= self.num_grids <= most:
            raise ValueError(f"num_grids must lie between 1 and 2 * patch_size**2 = {most}, got {self.num_grids}.")


def _to_blocks(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """Gather the pixels of each token: (n, height, width) -> (n, tokens, patch_size**2)."""
    n, height, width = pixels.shape
    p = patch_size
    blocks = pixels.reshape(n, height // p, p, width // p, p).transpose(0, 1, 3, 2, 4)  # (n, rows, columns, p, p)
    return blocks.reshape(n, (height // p) * (width // p), p * p)


def pixels_to_tokens(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """Pack binary images into tokens: (n, height, width) of 0/1 -> (n, height * width / patch_size**2)."""
    p = patch_size
    bits = _to_blocks(pixels, p)
    weights = 1 << np.arange(p * p)
    dtype = np.uint8 if p * p <= 8 else np.uint16
    return (bits.astype(np.int64) @ weights).astype(dtype)


def token_probs(white_probs: np.ndarray, patch_size: int) -> np.ndarray:
    """Probability of each token where each pixel is white on its own: (n, height, width) -> (n, tokens, V).

    V = 2**(patch_size**2). The product over a block's pixels, built up from its first pixel: each further pixel is
    either black, so that the token stays, or white, so that the token's next bit is set.
    """
    white = _to_blocks(white_probs, patch_size)[..., None]  # (n, tokens, patch_size**2, 1)
    probs = np.ones_like(white[:, :, 0])  # (n, tokens, 1)
    for pixel in range(patch_size**2):
        is_white = white[:, :, pixel]
        probs = np.concatenate([probs * (1 - is_white), probs * is_white], axis=-1)
    return probs


def tokens_to_pixels(tokens: np.ndarray, patch_size: int, image_size: int) -> np.ndarray:
    """Unpack tokens into binary images: (n, tokens) -> (n, image_size, image_size) of 0/1, uint8."""
    p, grid = patch_size, image_size // patch_size
    bits = (tokens[..., None].astype(np.int64) >> np.arange(p * p)) & 1  # (n, tokens, p * p)
    blocks = bits.reshape(-1, grid, grid, p, p).transpose(0, 1, 3, 2, 4)  # (n, rows, p, columns, p)
    return blocks.reshape(-1, image_size, image_size).astype(np.uint8)


def grid_shift(grid: int, patch_size: int) -> tuple[int, int]:
    """By how many pixels an image is moved down and to the right on a grid; for blocks of 2x2 first by both."""
    grid %= patch_size**2
    return grid % patch_size, (grid + grid // patch_size) % patch_size


def move_to_grid(images: np.ndarray, grid: int, patch_size: int) -> np.ndarray:
    """Move images, (n, height, width), so that their blocks begin at other pixels; what leaves comes in opposite.

    Grid 0 is the image as it is. From grid `patch_size**2` on, the image is first turned by 180 degrees, so that it is
    read from its last pixel to its first. Different images stay different: each grid shows all of an image.
    """
    if grid >= patch_size**2:
        images = images[:, ::-1, ::-1]
    return np.roll(images, grid_shift(grid, patch_size), axis=(1, 2))


def tokens_on_grid(tokens: np.ndarray, grid: int, config: TokenGrid) -> np.ndarray:
    """The tokens of the same images on another grid: (n, N) on grid 0 -> (n, N)."""
    pixels = tokens_to_pixels(tokens, config.patch_size, config.image_size)
    return pixels_to_tokens(move_to_grid(pixels, grid, config.patch_size), config.patch_size)
