"""Reader of HODA `.cdb` files (Khosravi and Kabir, 2007: Persian handwritten digits).

A file is a 1,024-byte header and then one record per image, integers little endian:

    header   bytes 4, 5: height and width where all images share them, else 0; 6-9: number of records;
             522: image type, 0 binary or 1 gray
    record   0xFF, label, [width, height where they vary], number of data bytes (2 bytes), data
    data     binary: run lengths, background first in each row, a row ends when its runs sum to the width;
             gray: width x height pixel bytes, row by row
"""

import os
import struct
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ...errors import DataError
from .arrays import from_arrays
from .parts import SourceImages


HEADER_SIZE = 1024
RECORD_MARKER = 0xFF
BINARY, GRAY = 0, 1


def read_cdb(path: str | os.PathLike) -> tuple[list[np.ndarray], np.ndarray]:
    """Read all images of a `.cdb` file, white on black, with their labels.

    Every byte is accounted for: a damaged file never yields a silently damaged image.

    Returns:
        images: list of n uint8 arrays (height, width), 0 or 255 (0 to 255 in a gray file).
        labels: int64 array (n,).

    Raises:
        DataError: if the file is missing or damaged; the message gives the byte offset.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    data = path.read_bytes()
    if len(data) < HEADER_SIZE:
        raise _damaged(path, len(data), f"the file ends inside its {HEADER_SIZE}-byte header")
    height, width, count = struct.unpack_from("<BBI", data, 4)
    image_type = data[522]
    if image_type not in (BINARY, GRAY):
        raise _damaged(path, 522, f"unknown image type {image_type} (0 is binary, 1 is gray)")

    images, labels, offset = [], [], HEADER_SIZE
    for index in tqdm(range(count), desc=f"Reading {path.name}", unit=" images", delay=1, disable=None):
        image, label, offset = _read_record(path, data, offset, (height, width), image_type, f"{index} of {count}")
        images.append(image)
        labels.append(label)
    if offset != len(data):
        raise _damaged(path, offset, f"{len(data) - offset} bytes follow the last of the header's {count} records")
    return images, np.array(labels, dtype=np.int64)


def _read_record(
    path: Path, data: bytes, offset: int, shared_size: tuple[int, int], image_type: int, name: str
) -> tuple[np.ndarray, int, int]:
    """Read the record at `offset`; returns its image (height, width), its label and where the next record starts."""
    layout = "<BBH" if all(shared_size) else "<BBBBH"
    data_start = offset + struct.calcsize(layout)
    if data_start > len(data):
        raise _damaged(path, offset, f"the file ends inside or before record {name}")
    marker, label, *own_size, num_bytes = struct.unpack_from(layout, data, offset)
    height, width = shared_size if all(shared_size) else reversed(own_size)

    if marker != RECORD_MARKER:
        raise _damaged(path, offset, f"record {name} starts with {marker:#04x}, not {RECORD_MARKER:#04x}")
    if height == 0 or width == 0:
        raise _damaged(path, offset, f"record {name} has a size of {width}x{height} pixels")
    data_end = data_start + num_bytes
    if data_end > len(data):
        raise _damaged(path, len(data), f"the file ends inside the {num_bytes} data bytes of record {name}")

    values = np.frombuffer(data, np.uint8, num_bytes, data_start)
    try:
        image = _gray_image(values, height, width) if image_type == GRAY else _binary_image(values, height, width)
    except DataError as error:
        raise _damaged(path, data_start, f"record {name}: {error}") from error
    return image, label, data_end


def _gray_image(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height * width,) -> (height, width), a copy."""
    if len(pixels) != height * width:
        raise DataError(f"{len(pixels)} pixel bytes for {width}x{height} pixels")
    return pixels.reshape(height, width).copy()


def _binary_image(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Run lengths (n,) -> image (height, width) of 0 and 255."""
    run_ends = np.cumsum(runs, dtype=np.int64)  # pixels up to the end of each run
    row_ends = width * np.arange(1, height + 1)
    last_runs = np.searchsorted(run_ends, row_ends)  # the first run that completes each row: (height,)
    if last_runs[-1] >= len(runs):
        raise DataError(f"its run lengths make {run_ends[-1] if len(runs) else 0} of {width}x{height} pixels")
    past = np.flatnonzero(run_ends[last_runs] != row_ends)
    if len(past):
        raise DataError(f"run {last_runs[past[0]]} goes past the end of row {past[0]}")
    if last_runs[-1] != len(runs) - 1:
        raise DataError(f"{len(runs) - 1 - last_runs[-1]} data bytes are left over after the last row")

    runs_per_row = np.diff(last_runs, prepend=-1)
    first_runs = np.repeat(last_runs + 1 - runs_per_row, runs_per_row)  # of the row that each run is in: (n,)
    is_foreground = (np.arange(len(runs)) - first_runs) % 2 == 1
    return np.repeat(np.where(is_foreground, np.uint8(255), np.uint8(0)), runs).reshape(height, width)


def _damaged(path: Path, offset: int, problem: str) -> DataError:
    return DataError(
        f"{path}: {problem} (byte {offset}). The file is damaged or not a HODA .cdb file: fetch it again."
    )


def open_cdb(paths: list[Path]) -> SourceImages:
    """All images of `.cdb` files together."""
    images, labels = [], []
    for path in paths:
        file_images, file_labels = read_cdb(path)
        images += file_images
        labels += file_labels.tolist()
    values = sorted(set(labels))
    names = [str(value) for value in values]
    return SourceImages(from_arrays(images, [values.index(label) for label in labels], names))
