"""Images to tokens and back: a token is a lossless block of binary pixels.

With `patch_size=2` a block has four pixels, so there are 2**4 = 16 tokens and a 28x28 image is 196 of them. Bit k of a
token, least significant first, is pixel k of its block in raster order; blocks follow in raster order too:

    pixels of a block    bits      token
         1 0             1 + 4*0
         1 1             ...       1*1 + 0*2 + 1*4 + 1*8 = 13

Because the blocks partition the image and every block has its own token, nothing is lost: `decode` is the exact
inverse of `tokenize`, and a likelihood over tokens is a likelihood over pixels.
"""

import inspect
import math
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_reading import as_list, has_light_border, read_image, to_marked_image
from .masks import known_bits, read_masks
from .tokens import pixels_to_tokens, tokens_to_pixels


class IGPTImageProcessor(BaseImageProcessor):
    """Turn images of any size and mode into binary tokens with their prompt, and tokens back into images.

    Args:
        image_size: Height and width of the binary images, in pixels; a multiple of `patch_size`.
        patch_size: Height and width of the block of pixels that one token stands for (1 to 4).
        num_labels: Number of classes. Prompt id `vocab_size + label` asks for a class, `vocab_size + num_labels` for
            any class (the start token).
        threshold: A pixel is foreground where its gray level, in [0, 1], is at least this.
        invert: "auto" inverts an image with a light border, so that it is white on black; or "never", "always".
            Boolean arrays, arrays of zeros and ones, and images made by this package are white on black already.
        margin: Pixels kept free around a crop, an image whose ink reaches all four edges, so that tightly cropped
            digits look like digits on a canvas (MNIST's have a margin of 4). An image that has the size `image_size`
            already stays as it is.
        binarize: "threshold", or "stochastic": each pixel is 1 with probability equal to its gray level (the
            protocol of dynamically binarized MNIST).

    Raises:
        ValueError: A size, threshold or mode out of its range.

    Example:
        >>> processor = IGPTImageProcessor()
        >>> tokens = processor.tokenize(image)                           # (1, 196), uint8
        >>> processor.decode(tokens)[0]                                  # the binary image again
        >>> processor(image, class_labels=[3])["input_ids"].shape        # (1, 1 + 196)
    """

    model_input_names = ["input_ids"]

    def __init__(
        self,
        image_size: int = 28,
        patch_size: int = 2,
        num_labels: int = 10,
        threshold: float = 0.5,
        invert: str = "auto",
        binarize: str = "threshold",
        margin: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if patch_size not in (1, 2, 3, 4):
            raise ValueError(
                f"patch_size must be 1, 2, 3 or 4 (a vocabulary of 2**(patch_size**2)), got {patch_size}."
            )
        if image_size <= 0 or image_size % patch_size:
            raise ValueError(
                f"image_size must be a positive multiple of patch_size={patch_size}, got {image_size}. "
                f"Use {max(1, image_size // patch_size) * patch_size}, or another patch_size."
            )
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is a gray level in (0, 1], got {threshold}.")
        if invert not in ("auto", "never", "always"):
            raise ValueError(f"invert must be 'auto', 'never' or 'always', got {invert!r}.")
        if not 0 <= margin < image_size / 2:
            raise ValueError(f"margin must lie between 0 and half of image_size={image_size}, got {margin}.")
        if binarize not in ("threshold", "stochastic"):
            raise ValueError(f"binarize must be 'threshold' or 'stochastic', got {binarize!r}.")
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_labels = num_labels
        self.threshold = threshold
        self.invert = invert
        self.binarize = binarize
        self.margin = margin

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        """Make a processor of saved settings; what `from_pretrained` is given beside them is checked like these."""
        settings = {name: kwargs.pop(name) for name in inspect.signature(cls).parameters if name in kwargs}
        return super().from_dict({**image_processor_dict, **settings}, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of image tokens."""
        return 2 ** (self.patch_size**2)

    @property
    def start_token_id(self) -> int:
        """Prompt id that asks for an image of any class."""
        return self.vocab_size + self.num_labels

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

    # --- images -> gray -> binary -> tokens -------------------------------------------------------------------------

    def to_gray(self, images) -> np.ndarray:
        """Fit images to `image_size`, white on black: anything image-like -> (n, image_size, image_size), uint8 gray.

        Gray and color become gray, alpha is laid over black, light borders are inverted (see `invert`), larger images
        shrink to fit with an antialiasing filter and keep their aspect ratio, smaller ones are centered.

        Args:
            images: One image or many, as PIL images, paths, arrays or tensors:

                * one image: a PIL image, a path, (height, width) or (height, width, channels);
                * many: a list of images, where (channels, height, width) is an image too; an array (n, height, width),
                  (n, height, width, channels) or (n, channels, height, width).

                1, 2, 3 or 4 channels are gray, gray with alpha, RGB or RGBA. Booleans and zeros and ones are binary
                (1 = white foreground), other integers are levels from 0 to 255, floats are levels from 0 to 1.

        Raises:
            ValueError: Something that is not an image, with its position; or an ambiguous array, with what to pass
                instead: (3, height, width) that is not binary integers may be one color image, and
                (n, image_size**2) flattened images.
        """
        images = as_list(images, self.image_size)
        return np.stack([self._fit(*read_image(image, index)) for index, image in enumerate(images)])

    def _fit(self, gray: Image.Image, is_white_on_black: bool) -> np.ndarray:
        """One gray image -> (image_size, image_size), uint8, white on black."""
        gray = self._to_white_on_black(gray, is_white_on_black)
        return self._place(gray, self._room_for(gray))

    def _to_white_on_black(self, gray: Image.Image, is_white_on_black: bool) -> Image.Image:
        if self.invert == "always" or (self.invert == "auto" and not is_white_on_black and has_light_border(gray)):
            gray = gray.point(lambda level: 255 - level)
        return gray

    def _place(self, gray: Image.Image, room: int) -> np.ndarray:
        """Shrink an image to a square of `room` pixels, unless it is smaller, and center it on the canvas."""
        scale = room / max(gray.size)
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in gray.size)
            gray = gray.resize((width, height), Image.Resampling.BILINEAR)
        canvas = np.zeros((self.image_size, self.image_size), np.uint8)
        top, left = (self.image_size - gray.height) // 2, (self.image_size - gray.width) // 2
        canvas[top : top + gray.height, left : left + gray.width] = np.asarray(gray)
        return canvas

    def _fit_mask(self, image, mask: np.ndarray, index: int) -> np.ndarray:
        """Place a mask as `_fit` places its image: (h, w) -> (image_size, image_size), booleans.

        A pixel is unknown where any unknown pixel has a part in it. What surrounds the image on the canvas is known.
        """
        gray, is_white_on_black = read_image(image, index)
        if mask.shape != (gray.height, gray.width):
            raise ValueError(
                f"mask {index} has {mask.shape[1]}x{mask.shape[0]} pixels and its image {gray.width}x{gray.height}: "
                "a mask has the size of its image."
            )
        room = self._room_for(self._to_white_on_black(gray, is_white_on_black))
        return self._place(Image.fromarray(mask.astype(np.uint8) * 255), room) > 0

    def _room_for(self, gray: Image.Image) -> int:
        """Side of the square that an image may fill: a crop, whose ink reaches all four edges, leaves the margin."""
        if gray.size == (self.image_size, self.image_size):
            return self.image_size
        ink = np.asarray(gray) >= self.threshold * 255
        is_crop = ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
        return self.image_size - 2 * self.margin if is_crop else self.image_size

    def binarize_gray(self, gray: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """Binarize gray levels 0..255 by threshold or, with `binarize="stochastic"`, at random: same shape, 0/1."""
        if self.binarize == "stochastic":
            generator = generator or np.random.default_rng()
            return (generator.random(gray.shape, dtype=np.float32) * 255 < gray).astype(np.uint8)
        return (gray >= self.threshold * 255).astype(np.uint8)

    def tokenize(self, images, generator: np.random.Generator | None = None) -> np.ndarray:
        """Turn images into tokens: anything that `to_gray` takes -> (n, num_image_tokens), unsigned integers.

        `generator` samples the pixels where `binarize="stochastic"`.
        """
        return pixels_to_tokens(self.binarize_gray(self.to_gray(images), generator), self.patch_size)

    def __call__(self, images, class_labels=None, return_tensors: str | None = "pt") -> BatchFeature:
        """Turn images into the model's training input: `input_ids` and `labels`, both (n, 1 + num_image_tokens).

        Args:
            images: Anything that `to_gray` takes.
            class_labels: One class index per image, or None for the start token. The prompt's label is -100: it is
                given, not predicted.
            return_tensors: "pt", "np" or None.
        """
        tokens = torch.from_numpy(self.tokenize(images).astype(np.int64))
        prompt = self._prompt_ids(_label_list(class_labels), len(tokens))
        data = {
            "input_ids": torch.cat([prompt, tokens], dim=1),
            "labels": torch.cat([torch.full_like(prompt, -100), tokens], dim=1),
        }
        return BatchFeature({key: value.numpy() for key, value in data.items()}, tensor_type=return_tensors)

    def preprocess(self, images, class_labels=None, return_tensors: str | None = "pt") -> BatchFeature:
        """Do what calling the processor does; transformers' image processors have both names."""
        return self(images, class_labels=class_labels, return_tensors=return_tensors)

    # --- prompts ----------------------------------------------------------------------------------------------------

    def prompt(
        self,
        class_labels=None,
        images=None,
        keep_rows: int | None = None,
        return_tensors: str | None = "pt",
        mask=None,
    ) -> BatchFeature:
        """Make the prompt of `model.generate`: `input_ids` (n, 1), or (n, 1 + given tokens) to complete images.

        Args:
            class_labels: Class index or indices, one per image wanted; None asks for any class.
            images: Images of which a part is given. One image is used for all labels, one label for all images.
            keep_rows: How many rows of pixels, from the top, are given; a multiple of `patch_size`.
            mask: Instead of `keep_rows`: true (white) where a pixel is unknown and to be filled in; booleans (h, w)
                or (n, h, w), a PIL image, or a list of those. It has the size of its image, and is fitted with it.
                One mask is used for all images, one image for all masks. The prompt then has `known_tokens` and
                `known_masks`, (n, N), beside `input_ids`.

        Raises:
            ValueError: A label or a number of rows out of range, a mask of another size or type or without unknown
                pixels, or lists of different lengths.
        """
        labels = _label_list(class_labels)
        count = 1 if labels is None else len(labels)
        if images is None:
            if keep_rows is not None or mask is not None:
                name = "mask" if keep_rows is None else f"keep_rows={keep_rows}"
                raise ValueError(f"{name} says how much of `images` is given: pass images too.")
            ids = self._prompt_ids(labels, count)
        elif mask is not None:
            if keep_rows is not None:
                raise ValueError(
                    "mask and keep_rows both say how much of `images` is given: leave out one of the two."
                )
            tokens, masks = self._known_tokens(images, mask)
            count = max(len(tokens), count)
            if len(tokens) not in (1, count):
                raise ValueError(
                    f"{len(tokens)} masked images and {count} class labels: give as many, or one of either."
                )
            data = {"input_ids": self._prompt_ids(labels, count), "known_tokens": tokens, "known_masks": masks}
            data = {name: ids.expand(count, -1).numpy() for name, ids in data.items()}
            return BatchFeature(data, tensor_type=return_tensors)
        else:
            given = self._given_tokens(images, keep_rows)
            count = max(len(given), count)
            if len(given) not in (1, count):
                raise ValueError(f"{len(given)} images and {count} class labels: give as many, or one of either.")
            ids = torch.cat([self._prompt_ids(labels, count), given.expand(count, -1)], dim=1)
        return BatchFeature({"input_ids": ids.numpy()}, tensor_type=return_tensors)

    def _given_tokens(self, images, keep_rows: int | None) -> torch.Tensor:
        if keep_rows is None or keep_rows % self.patch_size or not 0 < keep_rows < self.image_size:
            raise ValueError(
                f"keep_rows must be a multiple of patch_size={self.patch_size} between {self.patch_size} and "
                f"{self.image_size - self.patch_size}, got {keep_rows}."
            )
        given = self.tokenize(images)[:, : keep_rows // self.patch_size * self.grid_size]
        return torch.from_numpy(given.astype(np.int64))

    def _known_tokens(self, images, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and masks -> tokens without their unknown bits, and their known bits, (n, N) each."""
        images, masks = as_list(images, self.image_size), read_masks(mask)
        count = max(len(images), len(masks))
        if len(images) not in (1, count) or len(masks) not in (1, count):
            raise ValueError(f"{len(images)} images and {len(masks)} masks: give as many, or one of either.")
        pairs = zip(images * (count // len(images)), masks * (count // len(masks)), strict=True)
        fitted = [self._fit_mask(image, mask, index) for index, (image, mask) in enumerate(pairs)]
        for index, unknown in enumerate(fitted):
            if not unknown.any():
                raise ValueError(
                    f"mask {index} has no unknown pixel: there is nothing to fill in. True (white) marks what is "
                    "unknown."
                )
        bits = torch.from_numpy(known_bits(fitted, self))
        return torch.from_numpy(self.tokenize(images).astype(np.int64)) & bits, bits

    def _prompt_ids(self, labels: list | None, count: int) -> torch.Tensor:
        """Class indices -> prompt ids (count, 1); None -> start tokens."""
        if labels is None:
            return torch.full((count, 1), self.start_token_id)
        for label in labels:
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.num_labels:
                raise ValueError(
                    f"class label {label!r} is not one of the {self.num_labels} classes, 0 to {self.num_labels - 1}; "
                    "None asks for any class."
                )
        if len(labels) not in (1, count):
            raise ValueError(f"{len(labels)} class labels for {count} images: give as many, or one for all.")
        return (torch.tensor(labels, dtype=torch.long) + self.vocab_size)[:, None].expand(count, 1)

    # --- tokens -> images -------------------------------------------------------------------------------------------

    def decode(self, ids) -> list[Image.Image]:
        """Turn tokens back into images, exactly: ids -> list of PIL images (mode "L", 0 and 255).

        Args:
            ids: (n, 1 + num_image_tokens) as `generate` returns them, or (n, num_image_tokens) without the prompt.

        Raises:
            ValueError: A wrong number of tokens per image, or an id that is not an image token.
        """
        return [to_marked_image(pixels * 255) for pixels in self.decode_pixels(ids)]

    def decode_pixels(self, ids) -> np.ndarray:
        """Turn tokens back into binary pixels, exactly: ids as in `decode` -> (n, image_size, image_size), 0/1."""
        if isinstance(ids, Mapping):
            raise ValueError(f"ids are an array, a tensor or a list: pass one of {', '.join(ids)}, not all together.")
        if isinstance(ids, (list, tuple)) and len({np.shape(row) for row in ids}) > 1:
            raise ValueError("ids have different lengths: decode images with a prompt and without apart.")
        ids = np.atleast_2d(ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids))
        if ids.ndim != 2 or ids.shape[1] not in (self.num_image_tokens, self.num_image_tokens + 1):
            raise ValueError(
                f"ids must have shape (n, {self.num_image_tokens}), or (n, {self.num_image_tokens + 1}) with the "
                f"prompt, for {self.image_size}x{self.image_size} images; got {ids.shape}."
            )
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids are whole numbers, got {ids.dtype}.")
        tokens = ids[:, -self.num_image_tokens :]
        outside = np.argwhere((tokens < 0) | (tokens >= self.vocab_size))
        if len(outside):
            row, column = outside[0]
            raise ValueError(
                f"id {tokens[row, column]} at token {column} of image {row} is not an image token: they run from 0 to "
                f"{self.vocab_size - 1}. Is the prompt in the wrong place, or patch_size={self.patch_size} another?"
            )
        return tokens_to_pixels(tokens, self.patch_size, self.image_size)


def _label_list(class_labels) -> list | None:
    """One class index or many, of any type -> Python numbers; None stays None. The values are not checked."""
    if class_labels is None:
        return None
    if isinstance(class_labels, (np.ndarray, np.generic, torch.Tensor)):
        class_labels = class_labels.tolist()
    is_one = isinstance(class_labels, (str, bytes)) or not hasattr(class_labels, "__iter__")
    labels = [class_labels] if is_one else list(class_labels)
    if not labels:
        raise ValueError("no class labels were given: the list is empty; None asks for any class.")
    return [label.item() if hasattr(label, "item") and math.prod(label.shape) == 1 else label for label in labels]


IGPTImageProcessor.register_for_auto_class()  # checkpoints carry its code

__all__ = ["IGPTImageProcessor"]
