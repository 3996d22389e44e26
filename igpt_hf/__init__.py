"""Image GPT for binary images: train, sample, score and share small exact-likelihood models with Hugging Face tools.

Importing costs next to nothing: what a name stands for is fetched at its first use. The model is registered with the
Auto classes as soon as they are imported, before or after this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import DataError, IGPTError
from .registration import register


if TYPE_CHECKING:
    from .data.sources.hoda import read_cdb
    from .data.splits import load_splits
    from .data.synthetic import synthetic_digits
    from .data.tokenized import tokenize
    from .hub.bundled import bundled
    from .model.configuration_igpt import PRESETS, IGPTConfig
    from .model.image_processing_igpt import IGPTImageProcessor
    from .model.modeling_igpt import IGPTForCausalImageModeling, IGPTForImageClassification, IGPTModel
    from .model.pipeline_igpt import BinaryImageGenerationPipeline


__version__ = "1.0.0"

_MODULES = {
    "PRESETS": "model.configuration_igpt",
    "BinaryImageGenerationPipeline": "model.pipeline_igpt",
    "IGPTConfig": "model.configuration_igpt",
    "IGPTForCausalImageModeling": "model.modeling_igpt",
    "IGPTForImageClassification": "model.modeling_igpt",
    "IGPTImageProcessor": "model.image_processing_igpt",
    "IGPTModel": "model.modeling_igpt",
    "bundled": "hub.bundled",
    "load_splits": "data.splits",
    "read_cdb": "data.sources.hoda",
    "synthetic_digits": "data.synthetic",
    "tokenize": "data.tokenized",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


register()

__all__ = [
    "PRESETS",
    "BinaryImageGenerationPipeline",
    "DataError",
    "IGPTConfig",
    "IGPTError",
    "IGPTForCausalImageModeling",
    "IGPTForImageClassification",
    "IGPTImageProcessor",
    "IGPTModel",
    "bundled",
    "load_splits",
    "read_cdb",
    "synthetic_digits",
    "tokenize",
]
