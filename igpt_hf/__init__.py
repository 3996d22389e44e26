"""Image GPT for binary images: train, sample, score and share small exact-likelihood models with Hugging Face tools.

Importing costs next to nothing: what a name stands for is fetched at its first use. The model is registered with the
Auto classes as soon as they are imported, before or after this package.
"""

import sys
from importlib import import_module, util
from typing import TYPE_CHECKING

from .errors import DataError


if TYPE_CHECKING:
    from .data.sources.hoda import read_cdb
    from .data.splits import load_splits, tokenize
    from .data.synthetic import synthetic_digits
    from .model.configuration_igpt import PRESETS, IGPTConfig
    from .model.image_processing_igpt import IGPTImageProcessor
    from .model.modeling_igpt import IGPTForCausalImageModeling, IGPTForImageClassification, IGPTModel
    from .model.pipeline_igpt import BinaryImageGenerationPipeline


__version__ = "0.1.0"

_MODULES = {
    "PRESETS": "model.configuration_igpt",
    "BinaryImageGenerationPipeline": "model.pipeline_igpt",
    "IGPTConfig": "model.configuration_igpt",
    "IGPTForCausalImageModeling": "model.modeling_igpt",
    "IGPTForImageClassification": "model.modeling_igpt",
    "IGPTImageProcessor": "model.image_processing_igpt",
    "IGPTModel": "model.modeling_igpt",
    "load_splits": "data.splits",
    "read_cdb": "data.sources.hoda",
    "synthetic_digits": "data.synthetic",
    "tokenize": "data.splits",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


# --- registration ---------------------------------------------------------------------------------------------------


class _Model:
    """Stands for a model's class in the Auto classes' tables: the library's modelling code takes seconds to import."""

    def __init__(self, name: str):
        self.__name__ = name
        self.config_class = __getattr__("IGPTConfig")

    def __getattr__(self, attribute: str):
        return getattr(__getattr__(self.__name__), attribute)


class _AfterImport:
    """Calls a function once a module is imported: the library's Auto classes and pipelines take seconds, as well."""

    def __init__(self, module: str, function):
        self.module, self.function = module, function
        if self.module in sys.modules:
            function()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.function()

        spec.loader.exec_module = exec_module
        return spec


def _register_config():
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register("igpt", __getattr__("IGPTConfig"))


def _register_models():
    from transformers.models.auto.modeling_auto import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
    )

    config = __getattr__("IGPTConfig")
    AutoModel.register(config, _Model("IGPTModel"))
    AutoModelForCausalLM.register(config, _Model("IGPTForCausalImageModeling"))
    AutoModelForImageClassification.register(config, _Model("IGPTForImageClassification"))


def _register_image_processor():
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    processors = {"pil": __getattr__("IGPTImageProcessor")}
    AutoImageProcessor.register(__getattr__("IGPTConfig"), image_processor_classes=processors)


_AfterImport("transformers.models.auto.configuration_auto", _register_config)
_AfterImport("transformers.models.auto.modeling_auto", _register_models)
_AfterImport("transformers.models.auto.image_processing_auto", _register_image_processor)
_AfterImport("transformers.pipelines", lambda: import_module(".model.pipeline_igpt", __name__))  # it registers itself


__all__ = [
    "PRESETS",
    "BinaryImageGenerationPipeline",
    "DataError",
    "IGPTConfig",
    "IGPTForCausalImageModeling",
    "IGPTForImageClassification",
    "IGPTImageProcessor",
    "IGPTModel",
    "load_splits",
    "read_cdb",
    "synthetic_digits",
    "tokenize",
]
