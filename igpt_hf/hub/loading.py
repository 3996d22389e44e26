"""Load a trained model with its image processor, with errors that a user can act on."""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # of httpx2, or httpx: the client of the installed huggingface_hub
    RepositoryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import AutoConfig

from ..errors import IGPTError
from ..model.configuration_igpt import IGPTConfig
from ..model.image_processing_igpt import IGPTImageProcessor
from ..model.modeling_igpt import IGPTForCausalImageModeling, IGPTForImageClassification, IGPTPreTrainedModel
from .bundled import DEFAULT_MODEL, bundled, find_bundled


HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_TIMEOUT = 10  # seconds that the Hub has to say whether it knows a model
FILE_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".json", ".yaml", ".zip", ".tar", ".gz"}
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    HFValidationError,
    StrictDataclassError,
    SafetensorError,
)


def load_pretrained(
    name: str | None, model_class: type[IGPTPreTrainedModel] = IGPTForCausalImageModeling
) -> tuple[IGPTPreTrainedModel, IGPTImageProcessor]:
    """Load the model and the processor of a folder, of a model in the box by its name, or of a model id on the Hub.

    Without a name, those of the package's default model.

    Raises:
        IGPTError: There is no such folder or id, it holds no Image GPT of this package, a classifier where a model
            that generates is wanted, NaN or infinite weights, or a processor of other images than the model's.
    """
    name = bundled(DEFAULT_MODEL) if name is None else find_bundled(name)
    is_in_reach = _find(name)
    where: dict[str, Any] = {"local_files_only": not is_in_reach}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        if config.model_type != IGPTConfig.model_type:
            kind = config.model_type
            raise IGPTError(f"{name} is a model of type {kind}, not one of this package: transformers loads it.")
        classifies = IGPTForImageClassification.__name__ in (config.architectures or [])
        if classifies and model_class is IGPTForCausalImageModeling:
            raise IGPTError(
                f"{name} is a classifier (train.py --task classification), whose class prompts are not trained: pass "
                "the model that generates images. Its README.md says how it classifies, and its all_results.json how "
                "well."
            )
        model, info = model_class.from_pretrained(name, output_loading_info=True, **where)
        processor = IGPTImageProcessor.from_pretrained(name, **where)
    except IGPTError:
        raise
    except LOADING_ERRORS as error:
        raise IGPTError(f"{name} cannot be loaded as an Image GPT: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("classifier."))  # which is trained anew
    if missing:
        raise IGPTError(
            f"{name} has no weights for {', '.join(missing[:3])}: it is damaged, or another kind of model's."
        )
    _check(model, processor, name)
    return model, processor


def _find(name: str) -> bool:
    """Find a model before it is loaded: on the disk, else on the Hub, which is asked once and not again and again.

    Returns:
        Whether all its files are in reach; False: only those in the cache are, since the Hub does not answer.

    Raises:
        IGPTError: It is nowhere.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise IGPTError(f"{name} holds no trained model: it has no config.json.{_models_in(Path(name))}")
        return True
    if _looks_like_path(name):
        raise IGPTError(_no_such_folder(name))
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError as error:
        raise IGPTError(
            f"{name} is neither a local folder nor a model on the Hub that you can read. Check the name; for a "
            "private or gated model, `hf auth login`. Train one: igpt train."
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False
        raise IGPTError(
            f"{name} is not a local folder, and the Hub, where it could be a model's id, does not answer: {error}"
        ) from error
    return True


def _looks_like_path(name: str) -> bool:
    """Whether a name that is not a folder can only be a path, so that the Hub need not be asked.

    "runs/hoda" has the shape of an id, too (user/name): it is a path where there is a folder "runs".
    """
    path = Path(name)
    return HUB_ID.fullmatch(name) is None or path.exists() or path.parent.is_dir() or path.suffix in FILE_SUFFIXES


def _no_such_folder(name: str) -> str:
    path = Path(name)
    if path.is_file():
        return f"{name} is a file: name the folder of the model instead, with its config.json."
    message = f"there is no folder {name}.{_models_in(path.parent)}"
    if HUB_ID.fullmatch(name) is None:
        if path.name == name:  # one word, as the models in the package have
            message += f" In the package are {', '.join(bundled())}."
        return f"{message} Train one: igpt train; or name a model of the Hub as user/name."
    if path.parent.is_dir():
        return f"{message} If it is a model's id on the Hub, work where there is no folder {path.parent}."
    return message


def _models_in(folder: Path) -> str:
    models = sorted(str(path.parent) for path in folder.glob("*/config.json"))
    return f" There are models in {', '.join(models)}." if models else ""


def _check(model: IGPTPreTrainedModel, processor: IGPTImageProcessor, name: str):
    for weight_name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise IGPTError(
                f"{name}: the weights {weight_name} are not all numbers (NaN or infinite): the training diverged, or "
                "the file is damaged. Take an earlier checkpoint, or train again with a lower learning rate."
            )
    for setting in ("image_size", "patch_size", "num_labels"):
        expected, found = getattr(model.config, setting), getattr(processor, setting)
        if expected != found:
            raise IGPTError(
                f"{name}: config.json says {setting}={expected}, preprocessor_config.json {setting}={found}. They do "
                "not belong together: save the model and its processor from the same run."
            )
