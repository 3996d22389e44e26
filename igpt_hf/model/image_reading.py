"""Anything image-like -> a gray PIL image, with its opacity."""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo


# Marks (a PNG's text chunk; `Image.info` in memory). This package's own images are white on black, whatever the data
# looks like. The ones of arrays are white unless `invert` says otherwise.
WHITE_FOREGROUND = {"foreground": "white"}
WHITE_ONES = {"foreground": "ones"}
INVERSE = "inverse-crc32"  # beside the first mark: Pillow's operations keep marks, also when they invert
CHANNELS = (1, 2, 3, 4)  # gray, gray with alpha, RGB, RGBA
ARRAYS = (np.ndarray, torch.Tensor)
_FLAT = (
    "an array of shape {0} may be flattened images: pass array.reshape(-1, {1}, {1}); if it is one image of that "
    "height and width, pass PIL.Image.fromarray(array)."
)


def as_list(images, image_size: int) -> list:
    """One image or many -> a list of images."""
    if isinstance(images, (Image.Image, str)) or hasattr(images, "__fspath__"):
        return [images]
    if isinstance(images, ARRAYS):
        images = _images_of_array(images, image_size)
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


def _images_of_array(array: np.ndarray | torch.Tensor, image_size: int) -> list:
    """Split an array or tensor into images, each (height, width) or with a channel axis; refuse an ambiguous shape."""
    shape, side = tuple(array.shape), image_size
    if array.ndim in (1, 2) and shape[-1] == side**2 and side > 1:
        raise ValueError(_FLAT.format(shape, side))
    if array.ndim == 2:
        return [array]
    if array.ndim == 3 and shape[2] in CHANNELS and shape[1] > shape[2]:
        return [array]  # (height, width, channels), as PIL, OpenCV and matplotlib have it
    # Binary pixels have no color: this package's own arrays, from `decode_pixels`, are always (n, height, width).
    if array.ndim == 3 and shape[0] == 3 and not _has_binary_integers(array):
        raise ValueError(
            f"an array of shape {shape} may be one color image (channels, height, width), or three gray ones: pass "
            "[array] for one color image, list(array) for three gray ones."
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
    return not is_fraction and _are_zeros_and_ones(array)


def _are_zeros_and_ones(array: np.ndarray | torch.Tensor) -> bool:
    return bool(((array == 0) | (array == 1)).all())


def to_marked_image(pixels: np.ndarray) -> Image.Image:
    """(height, width), uint8, white on black -> a PIL image with a mark that says so, also in a PNG file."""
    image, text = Image.fromarray(pixels), PngInfo()
    marks = WHITE_FOREGROUND | {INVERSE: str(zlib.crc32(255 - pixels))}
    for key, value in marks.items():
        text.add_text(key, value)
    image.info.update(marks)
    image.encoderinfo = {"pnginfo": text}  # what `save` adds to its arguments
    return image


class GrayImage(NamedTuple):
    """An image as it was read, both parts in mode "L"."""

    gray: Image.Image
    opacity: Image.Image | None  # None: no pixel is transparent
    is_white: bool  # known to be white on black, unless `invert` says otherwise
    is_mask: bool  # of zeros and ones only, which are white on black unless other images of the data set say otherwise
    is_own: bool = False  # made by this package: white on black in any case


def read_image(image, index: int) -> GrayImage:
    """Read anything image-like; `index` is for the messages."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()  # numpy has no bfloat16
    if isinstance(image, str) or hasattr(image, "__fspath__"):
        image = Image.open(image)
    if not isinstance(image, Image.Image):
        return _read_array(_pixel_array(image, index), index)
    if image.width == 0 or image.height == 0:
        raise ValueError(f"image {index} is empty: {image.width}x{image.height} pixels.")
    mark, inverse = image.info.get("foreground"), image.info.get(INVERSE)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # a photo that was taken sideways
        image = ImageOps.exif_transpose(image)
    try:
        gray, opacity = _pil_to_gray(image)
    except ValueError as error:
        raise ValueError(f"image {index} (mode {image.mode}) cannot be made gray: {error}") from error
    is_own = mark == WHITE_FOREGROUND["foreground"] and inverse != str(zlib.crc32(np.asarray(gray)))
    top = gray.getextrema()[1]
    is_mask = opacity is None and top <= 1
    has_ones = is_mask and top == 1 and image.mode[0] not in "IF"  # those are scaled already
    if has_ones:
        gray = gray.point([255 * (level > 0) for level in range(256)])
    return GrayImage(gray, opacity, is_own or has_ones or mark == WHITE_ONES["foreground"], is_mask, is_own)


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
            f"1 to 4 channels, first or last (if both are so short, it is ambiguous), got {type(image).__name__} "
            f"of shape {array.shape}."
        )
    if array.ndim == 3:
        array = np.moveaxis(array, where[0], 2)
        array = array[..., 0] if array.shape[2] == 1 else array
    return array


def _read_array(array: np.ndarray, index: int) -> GrayImage:
    low, high = array.min(), array.max()
    top = 1 if array.dtype == bool or np.issubdtype(array.dtype, np.floating) else 255
    if not (0 <= low and high <= top):  # also true for NaN
        raise ValueError(f"image {index} has values from {low} to {high}; {array.dtype} pixels lie in [0, {top}].")
    is_mask = _are_zeros_and_ones(array)
    if is_mask or top == 1:
        array = np.rint(array.astype(np.float32) * 255)
    gray, opacity = _pil_to_gray(Image.fromarray(array.astype(np.uint8)))
    return GrayImage(gray, opacity, is_mask and not np.issubdtype(low.dtype, np.floating), is_mask)


def _pil_to_gray(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A PIL image of any mode -> (gray, opacity), both of mode "L"; 16-bit levels are scaled, not clipped."""
    if image.mode == "L" and "transparency" not in image.info:
        return image, None
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        if not np.isfinite(levels).all():
            raise ValueError("it has NaN or infinite pixels.")
        if image.mode == "F" and (1 < levels.max() < 2 or levels.max() > 255):
            raise ValueError(f"it has levels up to {levels.max()}: scale or clip them, from 0 to 1 or from 0 to 255.")
        top = _white_level(levels, image.mode)
        return Image.fromarray(np.rint(levels.clip(0, top) / top * 255).astype(np.uint8)), None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        opacity = rgba.getchannel("A")
        return rgba.convert("RGB").convert("L"), opacity if opacity.getextrema()[0] < 255 else None
    return (image.convert("RGB") if image.mode == "LAB" else image).convert("L"), None


def _white_level(levels: np.ndarray, mode: str) -> int:
    """The level that stands for white in a 16-bit, 32-bit or float image.

    Masks have 0 and 1, or 0 and 255, in any mode. Else 16-bit images have up to 65535, however dark they are: one
    without ink does not become noise.
    """
    high = levels.max()
    if high <= 1:
        return 1 if mode == "F" or _are_zeros_and_ones(levels) else 255
    if mode.startswith("I;16") and not np.isin(levels, (0, 255)).all():
        return 65535
    return 65535 if mode.startswith("I") and high > 255 else 255


def has_light_border(gray: Image.Image) -> bool:
    """Whether most pixels at the four edges are light."""
    return bool(np.median(edges_of(np.asarray(gray))) >= 128)


def edges_of(pixels: np.ndarray) -> np.ndarray:
    """The pixels at the four edges of an image: (h, w) -> (2h + 2w,)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
