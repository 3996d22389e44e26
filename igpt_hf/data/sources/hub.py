"""Data sets of the Hub."""

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from ...errors import IGPTError
from .columns import open_parts
from .parts import ReadOptions, SourceImages


HUB_ERRORS = (DatasetsError, OSError, ValueError, RuntimeError, ImportError)


def split_id(source: str) -> tuple[str, str | None]:
    """'user/name:configuration' -> ('user/name', 'configuration'); the configuration may be left out."""
    name, _, configuration = source.partition(":")
    return name, configuration or None


def open_hub(source: str, options: ReadOptions) -> SourceImages:
    """A Hub dataset `user/name` or `user/name:configuration`, with its splits."""
    try:
        parts = dict(load_dataset(*split_id(source)))
    except HUB_ERRORS as error:
        raise IGPTError(
            f"{source!r} was not found here and could not be loaded as a Hub dataset. Check the id, the "
            f"connection, and for a private dataset `hf auth login`. The reason was: {error}"
        ) from error
    return open_parts(parts, source, options)
