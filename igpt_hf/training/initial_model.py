"""The model that a training run starts from, and its image processor: new, from a checkpoint, or the baseline's."""

import contextlib
import logging
from dataclasses import dataclass

from huggingface_hub.errors import StrictDataclassError
from PIL.Image import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.inspection import Inspection, inspect_images, parse_threshold
from ..errors import IGPTError
from ..hub.loading import load_pretrained
from ..model.configuration_igpt import IGPTConfig
from ..model.image_processing_igpt import IGPTImageProcessor
from ..model.modeling_igpt import IGPTForCausalImageModeling, IGPTForImageClassification
from .arguments import ScriptArguments
from .imagegpt_baseline import BASELINE_PRESET, baseline_layout, baseline_model, baseline_processor


logger = logging.getLogger(__name__)
MAX_TOKENS = 2**16  # of an image: 256x256 patches, whose attention has 2**31 weights in each head
MODELS = {"generation": IGPTForCausalImageModeling, "classification": IGPTForImageClassification}


@dataclass
class InitialModel:
    """What a run begins with.

    Args:
        model: To be trained.
        processor: Makes the tokens.
        saved_processor: What is saved with the model: the same, except for transformers' ImageGPT.
        layout: How images are laid out in tokens.
    """

    model: PreTrainedModel
    processor: IGPTImageProcessor
    saved_processor: BaseImageProcessor
    layout: IGPTConfig

    def look_at(self, images: list[Image], num_images: int | None) -> Inspection:
        """Decide, by a sample of the training images, what the processor leaves open."""
        inspection = inspect_images(images, self.processor, num_images)
        if self.saved_processor is self.processor:
            self.saved_processor = inspection.processor
        self.processor = inspection.processor
        return inspection


def check_model_flags(script_args: ScriptArguments, model_args):
    """Refuse flags that describe no model, whatever the data: before it is read.

    Raises:
        IGPTError: It says what is wrong.
    """
    if script_args.model_name_or_path is None and model_args.preset != BASELINE_PRESET:
        with _flags_of_a_model():
            config = IGPTConfig.from_preset(model_args.preset, **_settings(model_args))
        if config.num_image_tokens > MAX_TOKENS:
            raise IGPTError(
                f"--image_size {config.image_size} with --patch_size {config.patch_size} makes "
                f"{config.num_image_tokens:,} tokens an image, and {MAX_TOKENS:,} are the most: take smaller images."
            )


def _settings(model_args) -> dict:
    """The settings of a configuration that were given."""
    return {name: value for name, value in vars(model_args).items() if name != "preset" and value is not None}


def make_initial_model(class_names: list[str], script_args: ScriptArguments, model_args) -> InitialModel:
    """Make or load the model that the flags ask for.

    Raises:
        IGPTError: A checkpoint cannot be loaded, or flags are out of range or contradict each other.
    """
    if script_args.model_name_or_path is not None:
        return _from_checkpoint(class_names, script_args, model_args)
    settings = _settings(model_args)
    labels = {"id2label": dict(enumerate(class_names)), "label2id": {n: i for i, n in enumerate(class_names)}}
    is_imagegpt = model_args.preset == BASELINE_PRESET
    if is_imagegpt and script_args.task != "generation":
        raise IGPTError(f"--preset {BASELINE_PRESET} generates images only: leave out --task {script_args.task}.")
    if is_imagegpt:
        layout = baseline_layout(len(class_names), **settings)
    else:
        with _flags_of_a_model():
            layout = IGPTConfig.from_preset(model_args.preset, **settings, **labels)
    processor = IGPTImageProcessor(
        image_size=layout.image_size,
        patch_size=layout.patch_size,
        num_labels=layout.num_labels,
        threshold=parse_threshold(script_args.threshold),
        invert=script_args.invert,
        ink=script_args.ink,
        widen_strokes=script_args.widen_strokes,
        margin=layout.image_size // 14 if script_args.margin is None else script_args.margin,
        binarize=script_args.binarize,
    )
    if is_imagegpt:
        return InitialModel(baseline_model(layout, **labels), processor, baseline_processor(layout.image_size), layout)
    return InitialModel(MODELS[script_args.task](layout), processor, processor, layout)


@contextlib.contextmanager
def _flags_of_a_model():
    """Say what is wrong where flags are not what an `IGPTConfig` takes."""
    try:
        yield
    except (StrictDataclassError, ValueError) as error:  # of a wrong type, or sizes that do not fit together
        raise IGPTError(f"the flags describe no model: {error.__cause__ or error}") from error


def _from_checkpoint(class_names: list[str], script_args: ScriptArguments, model_args) -> InitialModel:
    path = script_args.model_name_or_path
    fixed = [name for name in vars(model_args) if name not in ("class_dropout_prob", "num_grids")]
    for name in (*fixed, "threshold", "invert", "ink", "widen_strokes", "margin", "binarize"):
        arguments = model_args if name in vars(model_args) else script_args
        if getattr(arguments, name) != getattr(type(arguments), name):
            raise IGPTError(f"--{name} cannot be changed: it comes with --model_name_or_path {path}.")
    model, processor = load_pretrained(path, MODELS[script_args.task])
    if model_args.class_dropout_prob is not None:  # of the training, not of the model
        with _flags_of_a_model():
            model.config.class_dropout_prob = model_args.class_dropout_prob
            model.config.validate()
    if model_args.num_grids is not None:
        with _flags_of_a_model():
            model.set_grids(model_args.num_grids)
    known = model.config.class_names
    if known != class_names:
        new = model.set_classes(class_names)
        processor.num_labels = len(class_names)
        logger.warning(
            "warning: %s knows the classes %s, and the data has %s. The prompts of these are new: %s.",
            path,
            ", ".join(known),
            ", ".join(class_names),
            ", ".join(new) or "none",
        )
    return InitialModel(model, processor, processor, model.config)
