"""Registration with transformers' Auto classes and pipelines, as soon as transformers' own modules are imported.

Registering in the ordinary way, `AutoModel.register(IGPTConfig, IGPTModel)`, imports the Auto classes, which alone
takes 2.4 times the processor time of `import torch, transformers` (which loads them lazily), and both of our classes.
Who wants `IGPTConfig` alone, or `igpt --help`, should not wait for that. So `import igpt_hf`, at 0.02 times, only says
what is to be done after transformers' own modules are imported: who has an Auto class in hand always finds Image GPTs
registered with it. benchmarks/speed.py measures it (`import_ratio`).

Python asks the finders in `sys.meta_path` for each module's loader. `_AfterImport` is a finder for one module: the
loader that it hands out does what the ordinary loader does, and calls the registration when that is done.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec


def _get(name: str):
    return getattr(import_module(__package__), name)


class _LazyClass:
    """Stands for a model's class in the Auto classes' tables until one of its attributes is asked for."""

    def __init__(self, name: str):
        self.__name__, self.config_class = name, _get("IGPTConfig")

    def __getattr__(self, attribute: str):
        return getattr(_get(self.__name__), attribute)


class _LoadThenCall(Loader):
    """Loads a module as its own loader does, then calls a function."""

    def __init__(self, loader: Loader, function):
        self.loader, self.function = loader, function

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.function()

    def __getattr__(self, attribute: str):  # get_source for tracebacks, ...
        return getattr(self.loader, attribute)


class _AfterImport(MetaPathFinder):
    """Calls a function once a module is imported; at once if it is already."""

    def __init__(self, module: str, function):
        self.module, self.function = module, function
        if module in sys.modules:
            function()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        spec.loader = _LoadThenCall(spec.loader, self.function)
        return spec


def _register_config():
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register("igpt", _get("IGPTConfig"))


def _register_models():
    from transformers.models.auto import modeling_auto as auto

    config = _get("IGPTConfig")
    auto.AutoModel.register(config, _LazyClass("IGPTModel"))
    auto.AutoModelForCausalLM.register(config, _LazyClass("IGPTForCausalImageModeling"))
    auto.AutoModelForImageClassification.register(config, _LazyClass("IGPTForImageClassification"))


def _register_image_processor():
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    processors = {"pil": _get("IGPTImageProcessor")}
    AutoImageProcessor.register(_get("IGPTConfig"), image_processor_classes=processors)


def _register_pipeline():
    import_module(".model.pipeline_igpt", __package__)  # registers itself


def register():
    """Register the model, its image processor and its pipeline as soon as each can be."""
    _AfterImport("transformers.models.auto.configuration_auto", _register_config)
    _AfterImport("transformers.models.auto.modeling_auto", _register_models)
    _AfterImport("transformers.models.auto.image_processing_auto", _register_image_processor)
    _AfterImport("transformers.pipelines", _register_pipeline)
