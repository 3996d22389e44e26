"""Folders that `save_to_disk` of a Dataset or a DatasetDict has written."""

from pathlib import Path

from datasets import Dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ...errors import DataError
from .columns import open_parts
from .parts import ReadOptions, SourceImages


def is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def open_saved(folder: Path, options: ReadOptions) -> SourceImages:
    """Its splits, if it has some; the images stay on disk."""
    try:
        saved = load_from_disk(str(folder))
        parts = {"": saved} if isinstance(saved, Dataset) else dict(saved)
        for part in parts.values():
            part.data.table.validate(full=True)  # Arrow trusts its files: wrong offsets would end the process
    except (DatasetsError, OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} cannot be loaded: {error}. Call save_to_disk again.") from error
    return open_parts(parts, str(folder), options)
