"""Arrays of any usual layout -> images one by one, with levels from 0 to 255."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError


CHANNELS = (1, 3, 4)  # gray, RGB, RGBA


@dataclass(frozen=True)
class Habits:
    """What is usual in the program that wrote an array, where its shape can mean two things."""

    images_last: bool = False  # (h, w, n), and the label 10 for the digit 0: .mat files
    by_columns: bool = False  # images are flattened column by column: MATLAB


PYTHON = Habits()


def split_images(array: Any, source: str, num_labels: int | None, habits: Habits = PYTHON) -> Sequence[np.ndarray]:
    """Split an array into n images, each (h, w) or (h, w, channels).

    Args:
        array: (n, h, w), (n, h, w, channels), (n, channels, h, w) or (n, h*w) with h = w; also (h, w, n),
            (h, w, channels, n) and (h*w, n), where n is the number of labels or MATLAB's habit; or an object array
            (MATLAB's cell array) or list of images of any size.
        source: For messages.
        num_labels: Number of labels; None: there are none.
        habits: Of what wrote it.

    Raises:
        DataError: The array has another layout, or the number of images differs from that of the labels.
    """
    images: Any
    is_list = isinstance(array, (list, tuple))
    array = array if is_list else np.asarray(array)
    if is_list or array.dtype == object:
        images = [np.asarray(image) for image in (array if is_list else array.ravel())]
    elif array.ndim == 2:
        images = _unflatten(array, source, num_labels, habits.by_columns)
    elif array.ndim in (3, 4):
        images = _move_channels(
            np.moveaxis(array, _image_axis(array.shape, source, num_labels, habits.images_last), 0), source
        )
    else:
        raise _no_layout(source, array.shape)
    if num_labels is not None and len(images) != num_labels:
        raise DataError(f"{source} has {len(images)} images, but {num_labels} labels. Give one label for each image.")
    for index, image in enumerate(images):
        if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in CHANNELS)):
            raise DataError(
                f"image {index} of {source} has the shape {image.shape}; it must be (h, w), or (h, w, channels) with "
                "1, 3 or 4 channels."
            )
    return images


def _no_layout(source: str, shape: tuple[int, ...]) -> DataError:
    return DataError(
        f"{source} has an array of shape {shape}, which are not images: give (n, h, w), (n, h, w, channels), "
        "(n, channels, h, w), or (n, h*w) with h = w."
    )


def _unflatten(array: np.ndarray, source: str, num_labels: int | None, by_columns: bool) -> np.ndarray:
    """(n, h*w) or (h*w, n) -> (n, h, w)."""
    is_square = [math.isqrt(length) ** 2 == length and length >= 4 for length in array.shape]
    if num_labels is None and array.shape[0] == array.shape[1] and all(is_square):
        count, side = len(array), math.isqrt(len(array))
        raise DataError(
            f"{source} has an array of shape {array.shape}, which may be one image or {count} of {side}x{side} "
            f"pixels. Give labels, or reshape it to (1, {count}, {count}) or ({count}, {side}, {side})."
        )
    if num_labels is not None and array.shape[0] != num_labels == array.shape[1]:
        is_last = True
    else:
        is_last = num_labels is None and by_columns and is_square == [True, False]
    rows = array.T if is_last else array  # (n, h*w)
    side = math.isqrt(rows.shape[1])
    if not is_square[0 if is_last else 1]:
        raise DataError(
            f"{source} has an array of shape {array.shape}: {rows.shape[1]} numbers are not a square image. Reshape "
            "it to (n, h, w)."
        )
    images = rows.reshape(-1, side, side)
    return images.transpose(0, 2, 1) if by_columns else images


def _image_axis(shape: tuple[int, ...], source: str, num_labels: int | None, images_last: bool) -> int:
    """The axis that counts the images: the first or the last."""
    last = len(shape) - 1
    if num_labels is not None:
        matches = [axis for axis in (0, last) if shape[axis] == num_labels]
        return matches[-1 if images_last else 0] if matches else 0
    if images_last:
        is_first = shape[1] == shape[2] != shape[0] if last == 2 else shape[2] not in CHANNELS
        return 0 if is_first else last
    if last == 2 and shape[0] == shape[1] != shape[2]:
        raise DataError(
            f"{source} has an array of shape {shape}, which may be {shape[2]} images of {shape[0]}x{shape[1]} pixels "
            f"or {shape[0]} of {shape[1]}x{shape[2]}. Give labels, or store it as (n, h, w): np.moveaxis(array, 2, 0)."
        )
    return 0


def _move_channels(images: np.ndarray, source: str) -> np.ndarray:
    """(n, channels, h, w) -> (n, h, w, channels); what has one channel -> (n, h, w)."""
    if images.ndim == 4 and (images.shape[3] not in CHANNELS or images.shape[1] == 1):
        if images.shape[1] not in CHANNELS:
            raise _no_layout(source, images.shape)
        images = np.moveaxis(images, 1, 3)
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def to_levels(images: Sequence[np.ndarray], source: str) -> Iterator[np.ndarray]:
    """Images -> uint8, one by one, all by one rule: where no number is above 1, 1 is white; else 255 or 65535 is.

    Raises:
        DataError: Numbers that are not levels: negative, above 65535, infinite, or text.
    """
    if not len(images):
        raise DataError(f"{source} holds no images.")
    kinds = {image.dtype.kind for image in images}
    if not kinds <= set("buif"):
        raise DataError(f"{source} has an array of {images[0].dtype}, not of numbers. Save levels from 0 to 255.")
    low, high = (getattr(np, name)([getattr(image, name)() for image in images]) for name in ("min", "max"))
    if not (0 <= low and high <= 65535):  # also true for NaN
        raise DataError(
            f"{source} has pixels from {low} to {high}; they must lie between 0 and 1, 0 and 255, or 0 and 65535. "
            "Scale them."
        )
    if 1 < high < 2 and "f" in kinds:
        raise DataError(
            f"{source} has pixels up to {high}, a little above 1: clip them to 1, or if white is 255, store integers."
        )
    top = 1 if high <= 1 else 255 if high <= 255 else 65535
    for image in images:
        is_done = image.dtype == np.uint8 and top == 255
        yield image if is_done else np.rint(image.astype(np.float64) * (255 / top)).astype(np.uint8)
