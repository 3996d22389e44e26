"""Folders of a cache that several processes may make at the same time: whole, or not there."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(final: Path, prefix: str = "unfinished-") -> Iterator[Path]:
    """Yield a folder to fill, beside `final`, which takes that name at the end; after an error it is removed.

    Where another process has made `final` in the meantime, that one stays.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        yield unfinished
        unfinished.rename(final)
    except OSError:
        if not final.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
