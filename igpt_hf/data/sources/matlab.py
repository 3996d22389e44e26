"""MATLAB's .mat files up to version 7, as scipy reads them."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

from ...errors import DataError
from .layouts import Habits


# What scipy's reader raises on damaged files (found by changing bytes of small files).
MAT_ERRORS: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, OSError, EOFError, zlib.error)
MAT_ERRORS += (NotImplementedError, MemoryError, OverflowError, AttributeError, ArithmeticError, RuntimeError)


def read_mat(path: Path) -> tuple[dict[str, np.ndarray], Habits]:
    """All arrays of a .mat file by name, those in structs as struct_field, with the habits of what wrote it.

    MATLAB and Octave flatten images by columns, Python, with scipy.io.savemat, by rows; the header tells them apart.

    Raises:
        DataError: It is damaged or of version 7.3.
    """
    try:
        content = scipy.io.loadmat(path)
    except NotImplementedError as error:
        raise DataError(f"{path} is of version 7.3: in MATLAB, save it with save(..., '-v7').") from error
    except MAT_ERRORS as error:
        raise DataError(f"{path} is damaged or not a .mat file: {error}. Save it again.") from error
    arrays: dict[str, np.ndarray] = {}
    for name, value in content.items():
        if not name.startswith("__"):
            _add(arrays, name, value)
    header = content.get("__header__", b"")
    is_python = b"Platform: posix" in header or b"Platform: nt" in header
    return arrays, Habits(images_last=True, by_columns=not is_python)


def _add(arrays: dict[str, np.ndarray], name: str, value: Any):
    """Add an array, or those of a struct; what is neither is left out."""
    if scipy.sparse.issparse(value):
        raise DataError(f"{name} is a sparse matrix: save full({name}).")
    if not isinstance(value, np.ndarray):
        return
    if value.dtype.names is None:
        arrays[name] = value
    elif value.size == 1:
        for field in value.dtype.names:
            _add(arrays, f"{name}_{field}", value[field].item())
