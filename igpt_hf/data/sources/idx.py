"""idx files (MNIST's format, LeCun et al. 1998), also gzipped.

bytes 0, 1: zero; 2: type of the numbers; 3: number of axes; then the length of each axis (4 bytes) and the
numbers, all big-endian
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ...errors import DataError
from .archives import CHUNK, check_unpacked


TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def is_idx(path: Path) -> bool:
    """Whether a file begins as idx files do, or is one by its name."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".idx", "ubyte")) or "-idx" in name or ".idx" in name:
        return True
    with open(path, "rb") as file:
        start = file.read(4)
    return len(start) == 4 and start[:2] == b"\0\0" and start[2] in TYPES and 1 <= start[3] <= 4


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file.

    Raises:
        DataError: The file is damaged; the message has what its header says and what is there.
    """
    data = _read_bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES or data[3] == 0:
        raise DataError(f"{path} is damaged or not an idx file: it begins with {data[:4].hex(' ')}. Fetch it again.")
    dtype, num_axes = np.dtype(TYPES[data[2]]), data[3]
    start = 4 + 4 * num_axes
    if len(data) < start:
        raise DataError(f"{path} ends inside its header of {start} bytes. Fetch it again.")
    shape = struct.unpack_from(f">{num_axes}I", data, 4)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise DataError(
            f"{path}: its header says {' x '.join(map(str, shape))} numbers, {expected:,} bytes, but "
            f"{len(data) - start:,} follow. Fetch it again."
        )
    try:
        return np.frombuffer(data, dtype, offset=start).reshape(shape)
    except ValueError as error:  # more axes than numpy has or, where one is 0, too large a product of the others
        raise DataError(f"{path} is damaged: its header says {num_axes} axes ({error}). Fetch it again.") from error


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    data = bytearray()
    try:
        with gzip.open(path) as file:
            while chunk := file.read(CHUNK):
                data += chunk
                check_unpacked(len(data), path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}. Fetch it again.") from error
    return bytes(data)
