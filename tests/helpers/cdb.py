"""Write the bytes of HODA's .cdb files."""

import struct

import numpy as np

from igpt_hf.data.sources.hoda import HEADER_SIZE


def header(count: int, height: int = 0, width: int = 0, image_type: int = 0) -> bytes:
    data = bytearray(HEADER_SIZE)
    struct.pack_into("<BBI", data, 4, height, width, count)
    data[522] = image_type
    return bytes(data)


def record(values: list[int], label: int = 7, width: int = 4, height: int = 2, marker: int = 0xFF) -> bytes:
    return struct.pack("<BBBBH", marker, label, width, height, len(values)) + bytes(values)


def run_lengths(image: np.ndarray) -> list[int]:
    """The slow and plain way, to test against."""
    runs = []
    for row in image:
        color, run = 0, 0
        for pixel in row:
            if pixel != color:
                runs.append(run)
                color, run = pixel, 0
            run += 1
        runs.append(run)
    return runs
