"""numpy's .npy and .npz files, without pickle: a pickle can run any code."""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ...errors import DataError
from .archives import check_unpacked


NUMPY_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, TypeError, LookupError, RuntimeError)
NUMPY_ERRORS += (zipfile.BadZipFile, zlib.error, MemoryError, OverflowError, SyntaxError, NotImplementedError)
NUMPY_ERRORS += (tokenize.TokenError,)  # of a header that numpy parses


def read_npy(path: Path) -> dict[str, np.ndarray]:
    """The array of a .npy file, which stays on disk until it is used, under the file's name."""
    try:
        return {path.stem: np.lib.format.open_memmap(path, mode="r")}
    except NUMPY_ERRORS as error:
        raise _refused(path, error) from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file, by name."""
    try:
        with zipfile.ZipFile(path) as packed:
            check_unpacked(sum(info.file_size for info in packed.infolist()), path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if isinstance(arrays[name], np.ndarray)}
    except DataError:
        raise
    except NUMPY_ERRORS as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> DataError:
    if "pickle" in str(error) or "Python objects" in str(error):
        return DataError(
            f"{path} holds Python objects, which are refused: unpickling them can run any code. Save plain arrays, "
            "such as np.savez(path, images=np.stack(images), labels=np.array(labels))."
        )
    return DataError(f"{path} is damaged or not a numpy file: {error}. Save it again.")
