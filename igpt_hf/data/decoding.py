"""Decode images safely: only known formats, nothing too large, damaged files named."""

import io
import logging
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets import Dataset, Image
from tqdm.auto import tqdm

from ..errors import DataError
from ..model.image_reading import read_image


logger = logging.getLogger(__name__)


MAX_PIXELS = 50_000_000  # a larger image is refused before it is decoded: it could fill the memory
# Others are refused: Pillow runs an interpreter for EPS, and the rest of its decoders are seldom used and tested.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
CHECK_BATCH = 32  # images that a thread checks at a time: one by one, handing them over would take longest
# What Pillow's decoders raise on damaged files (found by flipping bytes in twelve formats, and in its sources).
DECODE_ERRORS: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError)
DECODE_ERRORS += (TypeError, ArithmeticError, struct.error, zlib.error, PIL.Image.DecompressionBombError)


def check_images(
    dataset: Dataset,
    rows: np.ndarray,
    source: str,
    skip_bad_images: bool,
    describe: Callable[[PIL.Image.Image], Any] | None = None,
    one_frame: bool = False,
) -> tuple[np.ndarray, list]:
    """Decode every image of `rows` once; returns the rows that are good, and what `describe` says of their images.

    With `one_frame`, files of several frames are bad; without, their first frame counts, with a warning.

    Raises:
        DataError: An image is bad, the first one is named; not with `skip_bad_images`.
    """
    encoded = dataset.select(rows).cast_column("image", Image(decode=False))
    describe = describe or (lambda image: None)
    problems, animated, descriptions = _decode_all(encoded, not skip_bad_images, describe, one_frame)

    def name(position: int) -> str:
        image = encoded[position]["image"]
        is_file = image is not None and image["bytes"] is None and image["path"] is not None
        return image["path"] if is_file else f"row {rows[position]} of {source}"

    if animated:
        text = "%d of %d images have several frames, of which only the first is used; the first: %s"
        logger.warning(text, len(animated), len(rows), name(animated[0]))
    if not problems:
        return rows, descriptions

    position, problem = next(iter(problems.items()))
    message = f"{name(position)} {problem}"
    if not skip_bad_images:
        raise DataError(f"{message}. Fix or remove it, or leave out such images: --skip_bad_images.")
    logger.warning("Skipped %d of %d images; the first: %s", len(problems), len(rows), message)
    return np.delete(rows, list(problems)), descriptions


def _decode_all(
    encoded: Dataset, stop_at_first: bool, describe: Callable, one_frame: bool
) -> tuple[dict[int, str], list[int], list]:
    """Decode all images, in threads.

    Returns:
        What is wrong with the bad ones, by row; the rows of several frames; and what the good ones are.
    """

    def check(start: int) -> list[tuple[str | None, int, Any]]:
        return [_check(image, describe, one_frame) for image in encoded[start : start + CHECK_BATCH]["image"]]

    starts = range(0, len(encoded), CHECK_BATCH)
    problems: dict[int, str] = {}
    animated: list[int] = []
    descriptions: list = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(encoded), desc="Checking images", unit=" images", delay=1, disable=None) as progress,
    ):
        batches = pool.map(check, starts)
        for start, batch in zip(starts, batches, strict=True):
            problems |= {start + index: problem for index, (problem, *_) in enumerate(batch) if problem is not None}
            animated += [start + index for index, (_, frames, _) in enumerate(batch) if frames > 1]
            descriptions += [description for problem, _, description in batch if problem is None]
            progress.update(len(batch))
            if problems and stop_at_first:
                batches.close()  # type: ignore[attr-defined]  # a generator: cancels the batches that have not begun
                break
    return problems, animated, descriptions


def _check(encoded: dict[str, Any] | None, describe: Callable, one_frame: bool) -> tuple[str | None, int, Any]:
    """Why an image, {"bytes", "path"} as the data set stores it, cannot be decoded; else None, its number of frames,
    and what it is."""
    try:
        image, frames = first_frame(encoded, one_frame)
        return None, frames, describe(image)
    except DataError as problem:
        return str(problem), 0, None


def decode_image(encoded: dict[str, Any] | None, one_frame: bool = False) -> PIL.Image.Image:
    """Decode an image, {"bytes", "path"} as a data set stores it, to what `datasets.Image` makes of it.

    Args:
        one_frame: Refuse files of several frames, instead of taking the first. A photograph's preview is no frame.

    Raises:
        DataError: It is null, damaged, too large or of another format than `FORMATS`; the message says which, and
            wants the image's name before it.
    """
    return first_frame(encoded, one_frame)[0]


def first_frame(encoded: dict[str, Any] | None, one_frame: bool) -> tuple[PIL.Image.Image, int]:
    """The image of `decode_image`, and how many frames its file has."""
    if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
        raise DataError("is null")
    try:
        file = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
        with PIL.Image.open(file, formats=FORMATS) as image:  # only the header is read here
            width, height = image.size
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            if width * height <= MAX_PIXELS and not (one_frame and frames > 1):
                image.load()
                if image.mode[0] in "IF":
                    _check_levels(image)
                is_turned = PIL.ExifTags.Base.Orientation in image.getexif()
                return PIL.ImageOps.exif_transpose(image) if is_turned else image, frames
    except DataError:
        raise
    except DECODE_ERRORS as error:
        raise DataError(f"cannot be decoded ({type(error).__name__}: {error})") from error
    if one_frame and frames > 1:
        raise DataError(f"has {frames} frames: save each as a file")
    raise DataError(f"has {width}x{height} pixels, more than {MAX_PIXELS:,}")


def _check_levels(image: PIL.Image.Image):
    """Raise DataError if the levels of an image of 16 or 32 bits or of floats cannot be made gray."""
    try:
        read_image(image, 0)
    except ValueError as error:
        raise DataError(f"cannot be made gray: {error.__cause__ or error}") from error
