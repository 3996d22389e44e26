"""Data sets of the Hub."""

from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError

from ...errors import IGPTError
from .columns import standardize_columns


HUB_ERRORS = (DatasetsError, OSError, ValueError, RuntimeError, ImportError)


def open_hub(source: str, image_column: str, label_column: str) -> Dataset:
    """All splits of a Hub dataset together."""
    try:
        dataset = concatenate_datasets(list(load_dataset(source).values()))
    except HUB_ERRORS as error:
        raise IGPTError(
            f"{source!r} is no file or folder here, and could not be loaded as a Hub dataset. Check the id, the "
            f"connection, and for a private dataset `hf auth login`. The reason was: {error}"
        ) from error
    return standardize_columns(dataset, source, image_column, label_column)
