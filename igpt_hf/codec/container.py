"""The file of compressed images: a header of 60 bytes, then the words of the range coder, all little endian.

offset  bytes
0       4      "IGPT"
4       1      version of this format, 1
5       1      arithmetic: 0 compiled kernels, 1 torch
6       1      bits of the rounded probabilities
7       1      patch_size
8       2      image_size
10      2, 2   first and last class of the images; the number of classes stands for images without a class
14      2      batch: images that step together
16      4, 8   number of images; number of bytes after the header
28      16     digest of the model: its weights, and what of its configuration the probabilities depend on
44      4      CRC-32 of probabilities that the model gives for a known image: whether sums round as they did
48      4, 4   CRC-32 of the bytes after the header; of the decoded ids
56      4      CRC-32 of the header up to here
"""

import struct
import zlib
from typing import NamedTuple

from ..errors import DataError
from .rounding import PRECISION


MAGIC, VERSION = b"IGPT", 1
COMPILED, TORCH = 0, 1
ARITHMETICS = ("the compiled kernels", "torch")
MAX_BATCH_SIZE = 2**16 - 1
FIELDS = struct.Struct("<4sBBBBHHHHIQ16sIII")
CHECKSUM = struct.Struct("<I")
HEADER_SIZE = FIELDS.size + CHECKSUM.size


class Header(NamedTuple):
    """What stands in the header, in this order."""

    magic: bytes
    version: int
    arithmetic: int
    precision: int
    patch_size: int
    image_size: int
    first_class: int
    last_class: int
    batch_size: int
    num_images: int
    num_bytes: int
    model_digest: bytes
    probe: int
    payload_checksum: int
    ids_checksum: int


def pack(header: Header, payload: bytes) -> bytes:
    """Make a file of a header and the bytes after it."""
    fields = FIELDS.pack(*header)
    return fields + CHECKSUM.pack(zlib.crc32(fields)) + payload


def unpack(data: bytes) -> tuple[Header, bytes]:
    """Read a file: its header and the bytes after it.

    Raises:
        DataError: It is of another kind or version, cut off or changed.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise DataError("this is not a file of igpt compress.")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise DataError(f"the file's format has version {data[len(MAGIC)]}, this igpt_hf reads {VERSION}: update it.")
    if len(data) < HEADER_SIZE:
        raise DataError(f"the file ends after {len(data)} bytes, within its header: get a whole copy.")
    header, payload = Header(*FIELDS.unpack_from(data)), data[HEADER_SIZE:]
    if CHECKSUM.unpack_from(data, FIELDS.size)[0] != zlib.crc32(data[: FIELDS.size]):
        raise DataError("the file's header is damaged (its checksum differs): get another copy.")
    if header.precision != PRECISION:
        raise DataError(
            f"the file's probabilities are rounded to {header.precision} bits, this igpt_hf rounds to {PRECISION}: "
            "read it with the version that wrote it."
        )
    if len(payload) != header.num_bytes:
        what = "ends early" if len(payload) < header.num_bytes else "has something after its end"
        raise DataError(
            f"the file {what}: {len(data)} bytes instead of {HEADER_SIZE + header.num_bytes}. Get another copy."
        )
    if zlib.crc32(payload) != header.payload_checksum:
        raise DataError("the file is damaged (the checksum of its data differs): get another copy.")
    return header, payload
