"""Image GPT for binary images: train, sample, score and share small exact-likelihood models with Hugging Face tools.

Importing registers the model with the Auto classes and loads neither datasets nor matplotlib: `load_splits` and
`tokenize` are fetched at first use.
"""

from importlib import import_module

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM

from .configuration_igpt import PRESETS, IGPTConfig
from .errors import DataError
from .image_processing_igpt import IGPTImageProcessor
from .modeling_igpt import IGPTForCausalImageModeling, IGPTModel


__version__ = "0.1.0"

AutoConfig.register("igpt", IGPTConfig)
AutoModel.register(IGPTConfig, IGPTModel)
AutoModelForCausalLM.register(IGPTConfig, IGPTForCausalImageModeling)
AutoImageProcessor.register(IGPTConfig, image_processor_classes={"pil": IGPTImageProcessor})

_LAZY = {"load_splits": "data", "tokenize": "data", "read_cdb": "hoda", "synthetic_digits": "synthetic"}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "PRESETS",
    "DataError",
    "IGPTConfig",
    "IGPTForCausalImageModeling",
    "IGPTImageProcessor",
    "IGPTModel",
    "load_splits",
    "read_cdb",
    "synthetic_digits",
    "tokenize",
]
