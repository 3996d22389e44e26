"""MATLAB's .mat files, versions 5 to 7 (MathWorks, "MAT-File Format").

    header   116 bytes of text, 8 unused, the version, "IM" (little-endian) or "MI"
    element  type and number of bytes (4 bytes each; 2 each where the data are at most 4 bytes), data, padding to 8
    matrix   an element of elements: flags with the class, lengths of the axes, name, and then the numbers, the
             matrices of a cell array, or the names of the fields of a struct and a matrix for each

Arrays are stored by columns. This reader is our own because scipy's ends the process on some damaged files.
"""

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from .archives import CHUNK, check_unpacked
from .layouts import Habits
from .named_arrays import describe


NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
MATRIX, COMPRESSED = 14, 15
# Classes of matrices; others (sparse matrices, objects, functions) are left out.
CELL, STRUCT, CHAR, OPAQUE = 1, 2, 4, 17
NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
IS_COMPLEX, IS_LOGICAL = 0x0800, 0x0200
HEADER_SIZE, MAX_DEPTH = 128, 16


class _Damaged(Exception):
    """What is wrong with a file; its name is added where it is known."""


class Element(NamedTuple):
    kind: int
    data: memoryview


class Matrix(NamedTuple):
    name: str
    value: Any  # an array, a dict of the fields of a struct, or None for what is left out


def read_mat(path: Path) -> tuple[dict[str, np.ndarray], Habits]:
    """All arrays of a .mat file by name, those in structs as struct_field, with the habits of what wrote it.

    MATLAB and Octave flatten images by columns, Python, with scipy.io.savemat, by rows; the header tells them apart.

    Raises:
        DataError: It is damaged, or of version 4 or 7.3.
    """
    content = path.read_bytes()
    if content[:10] != b"MATLAB 5.0" and (content[:6] == b"MATLAB" or content[1:4] == b"HDF"):
        raise DataError(f"{path} is of version 7.3: in MATLAB, save it with save(..., '-v7').")
    if content[124:128] not in (b"\0\1IM", b"\1\0MI"):
        raise DataError(f"{path} is damaged or not a .mat file of versions 5 to 7. In MATLAB, save it with '-v7'.")
    is_python = b"Platform: posix" in content[:116] or b"Platform: nt" in content[:116]
    arrays: dict[str, np.ndarray] = {}
    try:
        reader = _Reader(path, "<" if content[126:128] == b"IM" else ">")
        for element in reader.elements(memoryview(content)[HEADER_SIZE:]):
            matrix = reader.matrix(element)
            if matrix.value is None and describe(matrix.name)[1] == "label":
                raise DataError(
                    f"{path}: {matrix.name} is of a class that is not read, such as categorical or table. In MATLAB, "
                    "save double(...) of it, or cellstr(...)."
                )
            if matrix.name:  # the others hold the values of such classes
                _add(arrays, *matrix)
    except _Damaged as problem:
        raise DataError(f"{path} is damaged or not a .mat file: {problem}. Save it again.") from problem
    return arrays, Habits(images_last=True, by_columns=not is_python)


def _add(arrays: dict[str, np.ndarray], name: str, value: Any):
    if isinstance(value, dict):
        for field, inner in value.items():
            _add(arrays, f"{name}_{field}", inner)
    elif value is not None:
        arrays[name] = value


class _Reader:
    def __init__(self, path: Path, order: str):
        self.path, self.order = path, order

    def elements(self, data: memoryview, limit: int | None = None):
        """The elements that follow each other, at most `limit` of them."""
        position = count = 0
        while position < len(data) and count != limit:
            if len(data) - position < 8:
                raise _Damaged(f"{len(data) - position} bytes are left where an element begins")
            kind, size = (int(value) for value in np.frombuffer(data[position : position + 8], f"{self.order}u4"))
            start, is_small = position + 8, kind >> 16
            if is_small:  # type and size share the first four bytes
                kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
            if size > (4 if is_small else len(data) - start):
                raise _Damaged(f"an element of {size} bytes does not fit")
            yield Element(kind, data[start : start + size])
            position = position + 8 if is_small else start + size + (0 if kind == COMPRESSED else -size % 8)
            count += 1

    def matrix(self, element: Element, depth: int = 0) -> Matrix:
        if element.kind == COMPRESSED and depth == 0:
            element = next(self.elements(self._unpack(element.data), limit=1), None)
        if element is None or element.kind != MATRIX or depth > MAX_DEPTH:
            raise _Damaged("a matrix is missing")
        if len(element.data) == 0:  # of a cell or field that nothing was assigned to
            return Matrix("", np.zeros((0, 0)))
        parts = self.elements(element.data)
        flags = self._numbers(next(parts, None))
        if len(flags) == 2 and int(flags[0]) & 0xFF == OPAQUE:  # a categorical or table: its values are elsewhere
            return Matrix(self._text(next(parts, None)), None)
        shape = tuple(self._numbers(next(parts, None)).tolist())
        name = self._text(next(parts, None))
        if len(flags) != 2 or len(shape) < 2 or len(shape) > 32 or min(shape) < 0:
            raise _Damaged(f"{name!r} has no class, or the axes {shape}")
        flag = int(flags[0])
        kind = flag & 0xFF
        if kind in NUMERIC and not flag & IS_COMPLEX:
            dtype = "?" if flag & IS_LOGICAL else NUMERIC[kind]
            with np.errstate(invalid="ignore"):
                return Matrix(name, self._shaped(name, self._numbers(next(parts, None)).astype(dtype), shape))
        if kind == CHAR:
            characters = self._shaped(name, np.array(list(self._text(next(parts, None))), dtype="U1"), shape)
            rows = characters.reshape(shape[0], -1)
            return Matrix(name, np.array(["".join(row).rstrip() for row in rows.tolist()], dtype=str))
        if kind == CELL:
            return Matrix(name, self._cells(name, parts, shape, depth))
        if kind == STRUCT and math.prod(shape) == 1:
            return Matrix(name, self._fields(parts, depth))
        return Matrix(name, None)

    def _cells(self, name: str, parts, shape: tuple[int, ...], depth: int) -> np.ndarray:
        values = [self.matrix(part, depth + 1).value for part in parts]
        cells = np.empty(len(values), dtype=object)
        for index, value in enumerate(values):
            cells[index] = value if isinstance(value, np.ndarray) else np.zeros((0, 0))
        return self._shaped(name, cells, shape)

    def _fields(self, parts, depth: int) -> dict[str, Any]:
        length = self._numbers(next(parts, None))
        names = self._text(next(parts, None))
        if len(length) != 1 or not 0 < length[0] <= 64:
            raise _Damaged("a struct has fields without names")
        step = int(length[0])
        fields = [names[start : start + step].rstrip("\0") for start in range(0, len(names), step)]
        return {field: self.matrix(part, depth + 1).value for field, part in zip(fields, parts, strict=False)}

    @staticmethod
    def _shaped(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if len(values) != math.prod(shape):
            raise _Damaged(f"{name!r} has the axes {shape} and {len(values)} values")
        return values.reshape(shape, order="F")

    def _numbers(self, element: Element | None) -> np.ndarray:
        if element is None or element.kind not in NUMBERS:
            raise _Damaged("numbers are missing")
        dtype = np.dtype(self.order + NUMBERS[element.kind])
        if len(element.data) % dtype.itemsize:
            raise _Damaged(f"{len(element.data)} bytes are not numbers of {dtype.itemsize} bytes")
        return np.frombuffer(element.data, dtype)

    def _text(self, element: Element | None) -> str:
        if element is None or element.kind not in TEXTS:
            raise _Damaged("text is missing")
        coding = TEXTS[element.kind]
        coding += ("-le" if self.order == "<" else "-be") if coding in ("utf-16", "utf-32") else ""
        return bytes(element.data).decode(coding, "replace")

    def _unpack(self, data: memoryview) -> memoryview:
        unpacked, decompress = bytearray(), zlib.decompressobj()
        packed = bytes(data)
        try:
            while chunk := decompress.decompress(packed, CHUNK):
                unpacked += chunk
                packed = decompress.unconsumed_tail
                check_unpacked(len(unpacked), self.path)
        except zlib.error as error:
            raise _Damaged(str(error)) from error
        return memoryview(unpacked)
