"""Load a trained model with its image processor, with errors that a user can act on."""

import json
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

from .configuration_igpt import IGPTConfig
from .errors import DataError
from .image_processing_igpt import IGPTImageProcessor
from .modeling_igpt import IGPTForCausalImageModeling, IGPTForImageClassification, IGPTPreTrainedModel


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
    name: str, model_class: type[IGPTPreTrainedModel] = IGPTForCausalImageModeling
) -> tuple[IGPTPreTrainedModel, IGPTImageProcessor]:
    """Load the model and the processor of a folder, or of a model id on the Hub.

    Raises:
        DataError: There is no such folder or id, it holds no Image GPT of this package, a classifier where a model
            that draws is wanted, weights that are no numbers, or a processor of other images than the model's.
    """
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.count("/") != 1):
        raise DataError(
            f"{name} is no folder here, and no model id on the Hub (user/name). Train one: scripts/train.py."
        )
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != IGPTConfig.model_type:
            raise DataError(f"{name} is a model of type {kind}, not one of this package: transformers loads it.")
        model, info = model_class.from_pretrained(name, output_loading_info=True)
        processor = IGPTImageProcessor.from_pretrained(name)
    except DataError:
        raise
    except LOADING_ERRORS as error:
        raise DataError(f"{name} cannot be loaded as an Image GPT: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("classifier."))  # which is trained anew
    if missing:
        raise DataError(
            f"{name} has no weights for {', '.join(missing[:3])}: it is damaged, or another kind of model's."
        )
    classifies = IGPTForImageClassification.__name__ in (model.config.architectures or [])
    if classifies and model_class is IGPTForCausalImageModeling:
        raise DataError(
            f"{name} is a classifier (train.py --task classification), whose class prompts are not trained: pass the "
            "model that draws images. The classifier's accuracy is in its all_results.json."
        )
    _check(model, processor, name)
    return model, processor


def _check(model: IGPTPreTrainedModel, processor: IGPTImageProcessor, name: str):
    for weight_name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise DataError(
                f"{name}: the weights {weight_name} are not all numbers (NaN or infinite): the training diverged, or "
                "the file is damaged. Take an earlier checkpoint, or train again with a lower learning rate."
            )
    for setting in ("image_size", "patch_size", "num_labels"):
        expected, found = getattr(model.config, setting), getattr(processor, setting)
        if expected != found:
            raise DataError(
                f"{name}: config.json says {setting}={expected}, preprocessor_config.json {setting}={found}. They do "
                "not belong together: save the model and its processor from the same run."
            )


def _results(name: str) -> dict:
    folder = Path(name)
    if folder.name.startswith("checkpoint-") and not (folder / "all_results.json").is_file():
        folder = folder.parent  # the run's
    path = folder / "all_results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def was_trained_on(name: str, data: str) -> bool:
    """Whether the all_results.json of a run says that its model was trained on this source."""
    source = _results(name).get("data")
    return source is not None and (source == data or Path(source).absolute() == Path(data).absolute())


def seen_images_warning(name: str, data: str, seed: int, max_images: int | None = None) -> str | None:
    """Say why the test split of a source may hold images that the model was trained on; None if it does not.

    Args:
        name: Folder of a run.
        data: The source.
        seed, max_images: Of `load_splits`.
    """
    results = _results(name)
    if not was_trained_on(name, data) or "split_seed" not in results:  # not known
        return None
    if data == "synthetic" and results["split_seed"] != seed:  # other digits
        return None
    if results["streaming"]:
        reason = "streamed, and so split otherwise than here"
    elif results["max_images"] != max_images:
        reason = f"with --max_images {results['max_images']}, and the part is split otherwise than the whole"
    elif results["split_seed"] != seed:
        reason = f"split with another seed: give --seed {results['split_seed']}"
    else:
        return None
    return f"{name} was trained on {data}, {reason}. It may have seen images of what is the test split here."


__all__ = ["load_pretrained", "seen_images_warning", "was_trained_on"]
