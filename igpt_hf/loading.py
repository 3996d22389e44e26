"""Load a trained model with its image processor, with errors that a user can act on."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

from .configuration_igpt import IGPTConfig
from .errors import DataError
from .image_processing_igpt import IGPTImageProcessor
from .modeling_igpt import IGPTForCausalImageModeling


def load_pretrained(name: str) -> tuple[IGPTForCausalImageModeling, IGPTImageProcessor]:
    """Load the model and the processor of a folder, or of a model id on the Hub.

    Raises:
        DataError: There is no such folder or id, or it holds no Image GPT of this package.
    """
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.count("/") != 1):
        raise DataError(
            f"{name} is no folder here, and no model id on the Hub (user/name). Train one: scripts/train.py."
        )
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != IGPTConfig.model_type:
            raise DataError(f"{name} is a model of type {kind}, not one of this package: transformers loads it.")
        return IGPTForCausalImageModeling.from_pretrained(name), IGPTImageProcessor.from_pretrained(name)
    except DataError:
        raise
    except (OSError, ValueError, HFValidationError) as error:
        raise DataError(f"{name} cannot be loaded as an Image GPT: {error}") from error


__all__ = ["load_pretrained"]
