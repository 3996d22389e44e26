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
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature


# A picture that says of itself that its foreground is white is never inverted (PNG text chunk; `Image.info` in
# memory).
WHITE_FOREGROUND = {"foreground": "white"}
CHANNELS = (1, 2, 3, 4)  # gray, gray with alpha, RGB, RGBA
ARRAYS = (np.ndarray, torch.Tensor)


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


class IGPTImageProcessor(BaseImageProcessor):
    """Turn images of any size and mode into binary tokens with their prompt, and tokens back into images.

    Args:
        image_size: Height and width of the binary images, in pixels; a multiple of `patch_size`.
        patch_size: Height and width of the block of pixels that one token stands for (1 to 4).
        num_labels: Number of classes. Prompt id `vocab_size + label` asks for a class, `vocab_size + num_labels` for
            any class (the start token).
        threshold: A pixel is foreground where its grey level, in [0, 1], is at least this.
        invert: "auto" turns a picture with a light border to white on black, "never" and "always" speak for
            themselves. Boolean arrays, arrays of zeros and ones, and pictures made by this package are white on black
            already.
        margin: Pixels kept free around a crop, that is a picture whose ink reaches all four edges, so that digits cut
            out tightly come out like digits on a canvas (MNIST's have a margin of 4). A picture that has the size
            `image_size` already stays as it is.
        binarize: "threshold", or "stochastic": each pixel is 1 with probability equal to its grey level (the
            protocol of dynamically binarised MNIST).

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
            raise ValueError(f"threshold is a grey level in (0, 1], got {threshold}.")
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

    # --- images -> grey -> binary -> tokens -------------------------------------------------------------------------

    def to_grey(self, images) -> np.ndarray:
        """Fit images to `image_size`, white on black: anything image-like -> (n, image_size, image_size), uint8 grey.

        Grey and colour become grey, alpha is laid over black, light borders are inverted (see `invert`), larger images
        shrink to fit with an antialiasing filter and keep their aspect ratio, smaller ones are centred.

        Args:
            images: One image or many, as PIL images, paths, arrays or tensors:

                * one image: a PIL image, a path, (height, width) or (height, width, channels);
                * many: a list of images, where (channels, height, width) is an image too; an array (n, height, width),
                  (n, height, width, channels) or (n, channels, height, width).

                1, 2, 3 or 4 channels are gray, gray with alpha, RGB or RGBA. Booleans and zeros and ones are binary
                (1 = white foreground), other integers are levels from 0 to 255, floats are levels from 0 to 1.

        Raises:
            ValueError: Something that is no image, with its position; or an array of two readings, with the way to
                say which is meant: (3, height, width) that is not binary integers may be one color image, and
                (n, image_size**2) flattened images.
        """
        images = _as_list(images, self.image_size)
        return np.stack([self._fit(*_read_image(image, index)) for index, image in enumerate(images)])

    def _fit(self, grey: Image.Image, is_white_on_black: bool) -> np.ndarray:
        """One grey picture -> (image_size, image_size), uint8, white on black."""
        if self.invert == "always" or (self.invert == "auto" and not is_white_on_black and _has_light_border(grey)):
            grey = grey.point(lambda level: 255 - level)
        scale = self._room_for(grey) / max(grey.size)
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in grey.size)
            grey = grey.resize((width, height), Image.Resampling.BILINEAR)
        canvas = np.zeros((self.image_size, self.image_size), np.uint8)
        top, left = (self.image_size - grey.height) // 2, (self.image_size - grey.width) // 2
        canvas[top : top + grey.height, left : left + grey.width] = np.asarray(grey)
        return canvas

    def _room_for(self, grey: Image.Image) -> int:
        """Side of the square that a picture may fill: a crop, whose ink reaches all four edges, leaves the margin."""
        if grey.size == (self.image_size, self.image_size):
            return self.image_size
        ink = np.asarray(grey) >= self.threshold * 255
        is_crop = ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
        return self.image_size - 2 * self.margin if is_crop else self.image_size

    def binarize_grey(self, grey: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """Binarise grey levels 0..255 by threshold or, with `binarize="stochastic"`, by chance: same shape, 0/1."""
        if self.binarize == "stochastic":
            generator = generator or np.random.default_rng()
            return (generator.random(grey.shape, dtype=np.float32) * 255 < grey).astype(np.uint8)
        return (grey >= self.threshold * 255).astype(np.uint8)

    def tokenize(self, images, generator: np.random.Generator | None = None) -> np.ndarray:
        """Turn images into tokens: anything that `to_grey` takes -> (n, num_image_tokens), unsigned integers.

        `generator` draws the pixels where `binarize="stochastic"`.
        """
        return pixels_to_tokens(self.binarize_grey(self.to_grey(images), generator), self.patch_size)

    def __call__(self, images, class_labels=None, return_tensors: str | None = "pt") -> BatchFeature:
        """Turn images into the model's training input: `input_ids` and `labels`, both (n, 1 + num_image_tokens).

        Args:
            images: Anything that `to_grey` takes.
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
        self, class_labels=None, images=None, keep_rows: int | None = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Make the prompt of `model.generate`: `input_ids` (n, 1), or (n, 1 + given tokens) to complete images.

        Args:
            class_labels: Class index or indices, one per image wanted; None asks for any class.
            images: Pictures whose upper part is given. One picture serves all labels, one label all pictures.
            keep_rows: How many rows of pixels, from the top, are given; a multiple of `patch_size`.

        Raises:
            ValueError: A label or a number of rows out of range, or lists of different lengths.
        """
        labels = _label_list(class_labels)
        count = 1 if labels is None else len(labels)
        if images is None:
            if keep_rows is not None:
                raise ValueError(f"keep_rows={keep_rows} says how much of `images` is given: pass images too.")
            ids = self._prompt_ids(labels, count)
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

    def _prompt_ids(self, labels: list | None, count: int) -> torch.Tensor:
        """Class indices -> prompt ids (count, 1); None -> start tokens."""
        if labels is None:
            return torch.full((count, 1), self.start_token_id)
        for label in labels:
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.num_labels:
                raise ValueError(f"class label {label!r} is not one of the {self.num_labels} classes, "
                                 f"0 to {self.num_labels - 1}; None asks for any class.")  # fmt: skip
        if len(labels) not in (1, count):
            raise ValueError(f"{len(labels)} class labels for {count} images: give as many, or one for all.")
        return (torch.tensor(labels, dtype=torch.long) + self.vocab_size)[:, None].expand(count, 1)

    # --- tokens -> images -------------------------------------------------------------------------------------------

    def decode(self, ids) -> list[Image.Image]:
        """Turn tokens back into pictures, exactly: ids -> list of PIL images (mode "L", 0 and 255).

        Args:
            ids: (n, 1 + num_image_tokens) as `generate` returns them, or (n, num_image_tokens) without the prompt.

        Raises:
            ValueError: A wrong number of tokens per image, or an id that is no image token.
        """
        return [_as_picture(pixels * 255) for pixels in self.decode_pixels(ids)]

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
                f"id {tokens[row, column]} at token {column} of image {row} is no image token: they run from 0 to "
                f"{self.vocab_size - 1}. Is the prompt in the wrong place, or patch_size={self.patch_size} another?"
            )
        return tokens_to_pixels(tokens, self.patch_size, self.image_size)


_FLAT = (
    "an array of shape {0} may be flattened images: pass array.reshape(-1, {1}, {1}); if it is one picture of that "
    "height and width, pass PIL.Image.fromarray(array)."
)


def _as_list(images, image_size: int) -> list:
    """One image or many -> a list of images."""
    if isinstance(images, (Image.Image, str)) or hasattr(images, "__fspath__"):
        return [images]
    if isinstance(images, ARRAYS):
        images = _pictures_of_array(images, image_size)
    if isinstance(images, Mapping) or not hasattr(images, "__iter__"):
        raise ValueError(
            f"images are PIL images, paths, arrays, tensors or a list of them, got {type(images).__name__}."
            + (f" Pass one of its values: {', '.join(map(str, images))}." if isinstance(images, Mapping) else "")
        )
    images = list(images)
    if not images:
        raise ValueError("no images were given: the list is empty.")
    flat = ((image_size**2,), (1, image_size**2))
    for image in images if image_size > 1 else ():
        if isinstance(image, ARRAYS) and tuple(image.shape) in flat:
            raise ValueError(_FLAT.format(tuple(image.shape), image_size))
    return images


def _pictures_of_array(array: np.ndarray | torch.Tensor, image_size: int) -> list:
    """Split an array or tensor into pictures, each (height, width) or with a channel axis; refuse two readings."""
    shape, side = tuple(array.shape), image_size
    if array.ndim in (1, 2) and shape[-1] == side**2 and side > 1:
        raise ValueError(_FLAT.format(shape, side))
    if array.ndim == 2:
        return [array]
    if array.ndim == 3 and shape[2] in CHANNELS and shape[1] > shape[2]:
        return [array]  # (height, width, channels), as PIL, OpenCV and matplotlib have it
    # Binary pixels have no color: this package's own arrays, from `decode_pixels`, are always pictures.
    if array.ndim == 3 and shape[0] == 3 and not _has_binary_integers(array):
        raise ValueError(
            f"an array of shape {shape} may be one color picture (channels, height, width), or three gray ones: pass "
            "[array] for one color picture, list(array) for three gray ones."
        )
    if array.ndim in (3, 4):
        return list(array)
    raise ValueError(
        "an array of images has shape (height, width), (height, width, channels), (n, height, width), "
        f"(n, height, width, channels) or (n, channels, height, width), got {shape}."
    )


def _has_binary_integers(array: np.ndarray | torch.Tensor) -> bool:
    """Whether an array holds booleans, or whole numbers that are all 0 or 1."""
    is_fraction = array.dtype.is_floating_point if isinstance(array, torch.Tensor) else array.dtype.kind == "f"
    return not is_fraction and bool(((array == 0) | (array == 1)).all())


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


def _as_picture(pixels: np.ndarray) -> Image.Image:
    """(height, width), uint8, white on black -> a PIL image that says so of itself, also in a PNG file."""
    picture, text = Image.fromarray(pixels), PngInfo()
    for key, value in WHITE_FOREGROUND.items():
        text.add_text(key, value)
    picture.info.update(WHITE_FOREGROUND)
    picture.encoderinfo = {"pnginfo": text}  # what `save` adds to its arguments
    return picture


def _read_image(image, index: int) -> tuple[Image.Image, bool]:
    """Anything image-like -> (grey picture, whether it is known to be white on black)."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()  # numpy has no bfloat16
    if isinstance(image, str) or hasattr(image, "__fspath__"):
        image = Image.open(image)
    if isinstance(image, Image.Image):
        if image.width == 0 or image.height == 0:
            raise ValueError(f"image {index} is empty: {image.width}x{image.height} pixels.")
        is_white = image.info.get("foreground") == WHITE_FOREGROUND["foreground"]
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # a photograph that was taken sideways
            image = ImageOps.exif_transpose(image)
        try:
            return _picture_to_grey(image), is_white
        except ValueError as error:
            raise ValueError(f"image {index} (mode {image.mode}) cannot be made grey: {error}") from error
    return _array_to_grey(_pixel_array(image, index), index)


def _pixel_array(image, index: int) -> np.ndarray:
    """An array, or lists of numbers, of one image -> (height, width), or (height, width, 2, 3 or 4)."""
    parts = image if isinstance(image, (list, tuple)) else []
    if any(isinstance(part, Image.Image) or (isinstance(part, ARRAYS) and part.ndim > 1) for part in parts):
        raise ValueError(f"image {index} is itself a list of images: pass one flat list.")
    array = np.asarray(image)
    where = [axis for axis in (0, 2) if array.ndim == 3 and array.shape[axis] in CHANNELS]
    if array.dtype == object or array.size == 0 or (array.ndim != 2 and len(where) != 1):
        raise ValueError(
            f"image {index} must be a PIL image, a path or an (height, width) array, with or without an axis of "
            f"1 to 4 channels, first or last (if both are so short, nobody knows which), got {type(image).__name__} "
            f"of shape {array.shape}."
        )
    if array.ndim == 3:
        array = np.moveaxis(array, where[0], 2)
        array = array[..., 0] if array.shape[2] == 1 else array
    return array


def _array_to_grey(array: np.ndarray, index: int) -> tuple[Image.Image, bool]:
    low, high = array.min(), array.max()
    top = 1 if array.dtype == bool or np.issubdtype(array.dtype, np.floating) else 255
    if not (0 <= low and high <= top):  # also true for NaN
        raise ValueError(f"image {index} has values from {low} to {high}; {array.dtype} pixels lie in [0, {top}].")
    is_binary = bool(np.isin(array, (0, 1)).all())
    if is_binary or top == 1:
        array = np.rint(array.astype(np.float32) * 255)
    return _picture_to_grey(Image.fromarray(array.astype(np.uint8))), is_binary


def _picture_to_grey(picture: Image.Image) -> Image.Image:
    """A PIL image of any mode -> mode "L"; alpha is laid over black, 16-bit levels are scaled, not clipped."""
    if picture.mode == "L" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        levels = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(levels).all():
            raise ValueError("it has pixels that are no numbers.")
        top = 65535 if picture.mode.startswith("I") and levels.max() > 255 else 1 if levels.max() <= 1 else 255
        return Image.fromarray(np.rint(levels.clip(0, top) / top * 255).astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")
    return (picture.convert("RGB") if picture.mode == "LAB" else picture).convert("L")


def _has_light_border(grey: Image.Image) -> bool:
    pixels = np.asarray(grey)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool(np.median(border) >= 128)


IGPTImageProcessor.register_for_auto_class()  # checkpoints carry its code

__all__ = ["IGPTImageProcessor", "pixels_to_tokens", "tokens_to_pixels"]
