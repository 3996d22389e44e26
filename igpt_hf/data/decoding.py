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

    With `one_frame`, files of several frames are bad.

    Raises:
        DataError: An image is bad, the first one is named; not with `skip_bad_images`.
    """
    encoded = dataset.select(rows).cast_column("image", Image(decode=False))
    problems, descriptions = _decode_all(encoded, not skip_bad_images, describe or (lambda image: None), one_frame)
    if not problems:
        return rows, descriptions

    position, problem = next(iter(problems.items()))
    image = encoded[position]["image"]
    is_file = image is not None and image["bytes"] is None and image["path"] is not None
    message = f"{image['path'] if is_file else f'row {rows[position]} of {source}'} {problem}"
    if not skip_bad_images:
        raise DataError(f"{message}. Fix or remove it, or leave out such images: --skip_bad_images.")
    logger.warning("Skipped %d of %d images; the first: %s", len(problems), len(rows), message)
    return np.delete(rows, list(problems)), descriptions


def _decode_all(
    encoded: Dataset, stop_at_first: bool, describe: Callable, one_frame: bool
) -> tuple[dict[int, str], list]:
    """Decode all images, in threads; returns what is wrong with the bad ones, by row, and what the others are."""

    def check(start: int) -> list[tuple[str | None, Any]]:
        return [_check(image, describe, one_frame) for image in encoded[start : start + CHECK_BATCH]["image"]]

    starts = range(0, len(encoded), CHECK_BATCH)
    problems: dict[int, str] = {}
    descriptions: list = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(encoded), desc="Checking images", unit=" images", delay=1, disable=None) as progress,
    ):
        batches = pool.map(check, starts)
        for start, batch in zip(starts, batches, strict=True):
            problems |= {start + index: problem for index, (problem, _) in enumerate(batch) if problem is not None}
            descriptions += [description for problem, description in batch if problem is None]
            progress.update(len(batch))
            if problems and stop_at_first:
                batches.close()  # type: ignore[attr-defined]  # a generator: cancels the batches that have not begun
                break
    return problems, descriptions


def _check(encoded: dict[str, Any] | None, describe: Callable, one_frame: bool) -> tuple[str | None, Any]:
    """Why an image, {"bytes", "path"} as the data set stores it, cannot be decoded; else None and what it is."""
    try:
        return None, describe(decode_image(encoded, one_frame))
    except DataError as problem:
        return str(problem), None


def decode_image(encoded: dict[str, Any] | None, one_frame: bool = False) -> PIL.Image.Image:
    """Decode an image, {"bytes", "path"} as a data set stores it, to what `datasets.Image` makes of it.

    Args:
        one_frame: Refuse files of several frames, instead of taking the first. A photograph's preview is no frame.

    Raises:
        DataError: It is null, damaged, too large or of another format than `FORMATS`; the message says which, and
            wants the image's name before it.
    """
    if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
        raise DataError("is null")
    try:
        file = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
        with PIL.Image.open(file, formats=FORMATS) as image:  # only the header is read here
            width, height = image.size
            frames = getattr(image, "n_frames", 1) if one_frame and image.format != "MPO" else 1
            if width * height <= MAX_PIXELS and frames == 1:
                image.load()
                is_turned = PIL.ExifTags.Base.Orientation in image.getexif()
                return PIL.ImageOps.exif_transpose(image) if is_turned else image
    except DECODE_ERRORS as error:
        raise DataError(f"cannot be decoded ({type(error).__name__}: {error})") from error
    if frames > 1:
        raise DataError(f"has {frames} frames: save each as a file")
    raise DataError(f"has {width}x{height} pixels, more than {MAX_PIXELS:,}")
