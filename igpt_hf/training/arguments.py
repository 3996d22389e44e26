"""The flags of `igpt train`: ScriptArguments, ModelArguments, IGPTTrainingArguments; reading and checking them."""

import argparse
import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.augmentation import FADE_FROM, FADED
from ..errors import IGPTError
from ..help import CommandParser, print_help
from ..hub.bundled import find_bundled
from ..model.configuration_igpt import PRESETS, IGPTConfig
from .imagegpt_baseline import BASELINE_PRESET


# Learning rates of each preset, of AdamW and of Muon; where there is none, the default,
# tuned for xxs, is used. The others were tried little (xs, s) or not at all.
LEARNING_RATES: dict[str, dict[str, float]] = {
    "xxs": {},
    "xxs-wide": {"learning_rate": 7e-3},
    "xs": {"learning_rate": 5e-3},
    "s": {"learning_rate": 2e-3, "muon_learning_rate": 1e-2},
    "igpt-s": {"learning_rate": 1e-3, "muon_learning_rate": 5e-3},
    "igpt-m": {"learning_rate": 5e-4, "muon_learning_rate": 2e-3},
    "igpt-l": {"learning_rate": 1e-4, "muon_learning_rate": 1e-3},
}


@dataclass
class ScriptArguments:
    """The task, the images to learn from, and how they are binarized."""

    task: Literal["generation", "classification"] = field(
        default="generation", metadata={"help": "Generate images, or classify them (section 3.3, fine-tuning)."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Start from this checkpoint, with its configuration; default: from scratch."}
    )
    data: str = field(
        default="synthetic",
        metadata={
            "help": "synthetic, a folder, an archive, a file of many images (docs/data.md), or a Hub dataset id."
        },
    )
    image_column: str = field(default="image", metadata={"help": "The column, or the array of a file, of images."})
    label_column: str = field(default="label", metadata={"help": "The column, or the array of a file, of classes."})
    labels_from: Literal["parent", "top"] | None = field(
        default=None, metadata={"help": "Folders in folders: the class is the parent folder of an image, or the top."}
    )
    splits: Literal["auto", "given", "random"] = field(
        default="auto",
        metadata={"help": "Keep given splits (auto), demand some (given), or take all images (random)."},
    )
    max_images: int | None = field(default=None, metadata={"help": "A random, stratified subset of this many images."})
    split_seed: int | None = field(default=None, metadata={"help": "Seed of the split; default: `seed`."})
    skip_bad_images: bool = field(default=False, metadata={"help": "Count and leave out images that cannot be read."})
    threshold: str = field(
        default="auto",
        metadata={"help": "Gray level in (0, 1] from which on a pixel is white, auto, or local: for uneven light."},
    )
    invert: str = field(default="auto", metadata={"help": "auto (as --ink says), never or always."})
    ink: str = field(default="auto", metadata={"help": "What becomes white: dark, light, opacity; auto: by the data."})
    widen_strokes: bool | None = field(
        default=None, metadata={"help": "Widen strokes thinner than one pixel; default: where the data needs it."}
    )
    margin: int | None = field(
        default=None,
        metadata={"help": "Pixels kept free around tight crops; default: image_size / 14, which is 2 of 28."},
    )
    binarize: str = field(default="threshold", metadata={"help": "threshold, or stochastic: anew in each epoch."})
    augment: float | None = field(
        default=None,
        metadata={
            "help": "Standard deviation of a random rotation, shear and stretch of each training image, anew in each "
            "epoch, fading out before the end; 0: none; default: 0.04 for images that are cropped to their ink."
        },
    )
    augment_fade_from: float = field(
        default=FADE_FROM,
        metadata={
            "help": "Part of the training after which the transforms of --augment fade; there are none after "
            f"{FADED} of it; default: {FADE_FROM}."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Parquet and Hub: tokenize into a cache, train from it."})
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Streaming: images in the shuffle buffer."})
    max_eval_images: int = field(
        default=10_000, metadata={"help": "Streaming: at most this many images per evaluation."}
    )
    figures: Literal["png", "pdf", "svg"] = field(
        default="png", metadata={"help": "Write each figure also in this format, beside its PNG."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads per process; default: all cores."})

    @property
    def draws_digits(self) -> bool:
        """Whether each epoch's training images are synthetic digits drawn anew."""
        return self.data == "synthetic" and self.max_images is None

    def get_split_seed(self, seed: int) -> int:
        """Seed of the split, where `seed` is that of the training."""
        return seed if self.split_seed is None else self.split_seed


def _model_arguments() -> type:
    """A dataclass with a flag for the preset and one for each field of `IGPTConfig`; None: the preset decides."""
    presets = ", ".join([*PRESETS, BASELINE_PRESET])
    meanings = dict(re.findall(r"^ {8}(\w+): ((?:.+\n)(?: {12}.+\n)*)", IGPTConfig.__doc__, re.MULTILINE))
    meanings = {name: " ".join(text.split()) for name, text in meanings.items()}
    fields: list[tuple[str, Any, Any]]
    fields = [("preset", str, field(default="xxs", metadata={"help": f"The model: {presets}."}))]
    taken = {training_field.name for training_field in dataclasses.fields(TrainingArguments)}  # use_cache
    taken.add("nats_quantiles")  # measured, not chosen
    for config_field in dataclasses.fields(IGPTConfig):
        if config_field.name in meanings and config_field.name not in taken:
            kind = next(t for t in (bool, float, int, str) if t.__name__ in str(config_field.type))
            default = config_field.default if config_field.name not in PRESETS["xxs"] else "the preset's"
            help_text = meanings[config_field.name] + (f" Unless given: {default}." if default is not None else "")
            fields.append((config_field.name, kind | None, field(default=None, metadata={"help": help_text})))
    return dataclasses.make_dataclass("ModelArguments", fields)


ModelArguments = _model_arguments()


class TrainParser(CommandParser, HfArgumentParser):
    """transformers' parser of dataclasses; `--help` is the short text, and `--help-all` lists every flag."""

    def print_help(self, file=None):
        print_help("train", file)


def make_parser() -> TrainParser:
    """The parser of scripts/train.py."""
    kinds: tuple[Any, ...] = (ScriptArguments, ModelArguments, IGPTTrainingArguments)
    parser = TrainParser(kinds, prog="igpt train", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="Flags as lines of `flag: value`; those here win.")
    return parser


def preset_of_checkpoint(name: str) -> str | None:
    """The preset that a model's sizes are those of; None: of no preset, or it is on the Hub and not read yet."""
    try:
        config = dict(json.loads((Path(find_bundled(name)) / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # loading it says what is wrong
        return None
    return next((preset for preset, sizes in PRESETS.items() if sizes.items() <= config.items()), None)


def parse_arguments(argv: list[str] | None = None):
    """Parse the command line of scripts/train.py -> (ScriptArguments, ModelArguments, IGPTTrainingArguments).

    `--config FILE.yaml` holds flags without their dashes; flags on the command line win over it.

    Raises:
        IGPTError: The YAML file is missing or not a flat mapping, or a flag is unknown or cannot be used.
        SystemExit: A value of the wrong type, or `--help`.
    """
    settings, argv = _split_off_config(argv)
    parser = make_parser()
    parser.set_defaults(**{name: None for name, value in settings.items() if value is None})
    flags = []
    for name, value in settings.items():
        if value is not None or name not in {action.dest for action in parser._actions}:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if "--help-all" in argv:
        sys.stdout.write(parser.format_help())
        sys.exit()
    known = parser.parse_known_args(flags + argv)[0]
    _check_evaluates(known)
    preset = preset_of_checkpoint(known.model_name_or_path) if known.model_name_or_path else known.preset
    parser.set_defaults(**LEARNING_RATES.get(preset, {}))  # flags win
    *arguments, namespace, unknown = parser.parse_args_into_dataclasses(flags + argv, return_remaining_strings=True)
    if unknown:
        parser.refuse_unknown(unknown)
    script_args, model_args, args = arguments
    if model_args.preset == BASELINE_PRESET:
        args.use_muon = False  # transformers' ImageGPT, trained with AdamW alone
    if script_args.streaming and (script_args.augment or 0) > 0:
        raise IGPTError("--augment changes images, and --streaming reads cached tokens: leave out one of them.")
    if script_args.task == "classification":
        if script_args.streaming:
            raise IGPTError("--streaming is for --task generation: a classifier's data must fit in memory.")
        if model_args.num_grids is not None:
            raise IGPTError("--num_grids is for --task generation: a classifier reads the first grid alone.")
        if args.metric_for_best_model == type(args).metric_for_best_model:  # the one of generation
            args.metric_for_best_model, args.greater_is_better = "eval_validation_accuracy", True
    _check_numbers(vars(script_args) | vars(args))
    _check_fixed(args)
    _check_length(args)
    _check_loggers(args)
    if args.push_to_hub and args.hub_strategy != "end":
        raise IGPTError(
            f"--hub_strategy {args.hub_strategy.value} would upload the whole folder, training images too. Only end "
            "is supported; igpt push uploads a checkpoint."
        )
    _check_selection(script_args.task, args)
    return tuple(arguments)


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise IGPTError(f"--config {path}: no such file.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IGPTError(f"--config {path} must be lines of `flag: value`: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or any(isinstance(value, dict) for value in settings.values()):
        raise IGPTError(f"--config {path} must be lines of `flag: value`, without dashes and nesting.")
    return settings


@dataclass
class IGPTTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for small Image GPTs; every flag of the original works."""

    output_dir: str = field(default="runs/igpt", metadata={"help": "Folder of the model, its card and figures."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start anew: delete the run in output_dir."})
    early_stopping_patience: int = field(
        default=5, metadata={"help": "Stop after this many evaluations without a better validation loss; 0: never."}
    )
    num_train_epochs: float = field(
        default=50, metadata={"help": "Passes over the training split, at most; default: 50."}
    )
    max_minutes: float | None = field(
        default=None,
        metadata={
            "help": "Stop after this many minutes of training, including evaluations and earlier parts of a resumed "
            "run; a last evaluation follows. The learning rate still decays over num_train_epochs (or max_steps)."
        },
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images per step and device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images per evaluation step and device."})
    use_muon: bool = field(
        default=True, metadata={"help": "Muon for the blocks' matrices, AdamW for the rest; false: what --optim says."}
    )
    learning_rate: float = field(default=1e-2, metadata={"help": "Peak learning rate (of AdamW, with muon)."})
    muon_learning_rate: float = field(default=2e-2, metadata={"help": "Peak learning rate of Muon."})
    weight_decay: float = field(
        default=0.1,
        metadata={"help": "On the blocks' matrices. Without it they grow under Muon, and small models stop learning."},
    )
    ema_decay: float = field(
        default=0.998, metadata={"help": "Evaluate and keep a moving average of the weights; 0: the weights."}
    )
    built_in_guidance: float = field(
        default=1.15,
        metadata={
            "help": "Late in the training, learn to sample as with this guidance scale: more samples "
            "are of the class that was asked for; 1: none; default: 1.15."
        },
    )
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Shape of the learning rate's decay."})
    warmup_steps: float = field(default=0.02, metadata={"help": "Steps, or a fraction below 1, of linear warm-up."})
    adam_beta2: float = field(default=0.95, metadata={"help": "As in the paper, section 3.5."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept: the best and the newest."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best model, not the last."})
    metric_for_best_model: str = field(
        default="eval_validation_nats_per_image", metadata={"help": "What 'best' means: the exact likelihood."}
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Of that metric; unless given: true of an accuracy, false of all else."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "A resumed run continues with the patience already used up."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The data set yields what the model takes."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All parameters are used."})
    data_seed: int | None = field(default=None, metadata={"help": "Order of the images; `seed` unless given."})
    logging_steps: float = field(default=50, metadata={"help": "Log the running training loss every this many steps."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "The batches are small."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "true: go on from the last complete checkpoint in output_dir; or the path of a checkpoint."},
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Upload model, card, results and figures to the Hub, once, at the end."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "With --push_to_hub: end, which is the only one."})
    # The Trainer writes this into the config that it saves; while training, `collate` switches the cache off.
    use_cache: bool = field(default=True, metadata={"help": "Saved with the model: generate with a cache."})

    def __post_init__(self):
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        self.metric_for_best_model = f"eval_{self.metric_for_best_model.removeprefix('eval_')}"
        if self.greater_is_better is None:
            self.greater_is_better = self.metric_for_best_model.endswith("accuracy")
        super().__post_init__()

    @property
    def images_per_step(self) -> int:
        """Images per step of the optimizer, in all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size


METRICS = {  # of each evaluated split; the best model can be chosen by any of them
    "generation": ("nats_per_image", "bits_per_pixel", "loss"),
    "classification": ("accuracy", "cross_entropy", "nats_per_image_unconditional", "loss"),
}


AT_LEAST = {  # smallest value -> flags
    1: """per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_threads
        shuffle_buffer max_eval_images built_in_guidance""".split(),
    0: """early_stopping_patience eval_steps save_steps logging_steps warmup_steps eval_delay save_total_limit
        learning_rate muon_learning_rate weight_decay max_grad_norm ema_decay label_smoothing_factor
        dataloader_num_workers seed data_seed split_seed augment augment_fade_from""".split(),
}
AT_MOST = {  # largest value -> flags; all but max_grad_norm, whose infinity clips nothing, are finite
    2**32 - 1: ["seed", "data_seed", "split_seed"],  # as numpy takes it
    1024: ["num_threads"],  # of which processes can have so many
    1: ["label_smoothing_factor"],
    0.85: ["augment_fade_from"],  # a fade takes a while
}


def _split_off_config(argv: list[str] | None) -> tuple[dict, list[str]]:
    """The lines of the file that `--config` names, and the other words of the command line."""
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path)
    namespace, argv = config_parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    return {} if namespace.config is None else _read_yaml(namespace.config), argv


def _check_numbers(values: dict):
    for minimum, names in AT_LEAST.items():
        for name in names:
            if values[name] is not None and not values[name] >= minimum:  # NaN is refused, too
                raise IGPTError(f"--{name} must be at least {minimum}, got {values[name]}")
            if values[name] == math.inf and name != "max_grad_norm":
                raise IGPTError(f"--{name} must be finite, got {values[name]}")
    for maximum, names in AT_MOST.items():
        for name in names:
            if values[name] is not None and values[name] > maximum:
                raise IGPTError(f"--{name} must be at most {maximum}, got {values[name]}")
    if values["ema_decay"] >= 1:
        raise IGPTError(f"--ema_decay must be below 1, or the average never moves; got {values['ema_decay']}")


def _check_fixed(args):
    """Refuse flags of the Trainer that the model or the folder of a run cannot do with."""
    if not args.output_dir.strip():
        raise IGPTError("--output_dir is empty: name a folder.")
    if args.remove_unused_columns:
        raise IGPTError("--remove_unused_columns true would remove what `collate` makes batches of: leave it out.")
    if args.label_names is not None:
        raise IGPTError(f"--label_names {' '.join(args.label_names)} names no part of a batch here: leave it out.")


def _check_length(args):
    """Refuse a run of no steps at all."""
    if args.max_steps != -1 and args.max_steps < 1:  # -1: as many as num_train_epochs make
        raise IGPTError(f"--max_steps {args.max_steps} leaves nothing to train: take at least 1, or leave it out.")
    if args.max_steps == -1 and not 0 < args.num_train_epochs < math.inf:
        raise IGPTError(
            f"--num_train_epochs {args.num_train_epochs} cannot be trained: take more than 0, or --max_steps."
        )
    if args.max_minutes is not None and not args.max_minutes > 0:
        raise IGPTError(f"--max_minutes {args.max_minutes} leaves no time to train: take more than 0.")


def _check_loggers(args):
    """Refuse to report to what is not installed; transformers would raise RuntimeError, and later."""
    missing = set(args.report_to) & set(INTEGRATION_TO_CALLBACK) - set(get_available_reporting_integrations())
    if missing:
        name = min(missing)
        raise IGPTError(f"--report_to {name}: {name} is not installed. Run pip install {name}, or leave it out.")


def _check_evaluates(namespace: argparse.Namespace):
    """Refuse a run whose evaluations choose no checkpoint, before transformers does it at length."""
    evaluates, saves = namespace.eval_strategy, namespace.save_strategy
    if evaluates == "no":
        raise IGPTError("--eval_strategy no leaves nothing to choose the best model by: take epoch or steps.")
    if namespace.load_best_model_at_end and saves not in (evaluates, "best"):
        raise IGPTError(
            f"--eval_strategy {evaluates} and --save_strategy {saves}: the best model is a checkpoint, so that both "
            "must be the same. Or choose no best model: --load_best_model_at_end false."
        )


def _check_selection(task: str, args):
    """Refuse what leaves nothing to choose the best model by, or names what is not measured."""
    if args.prediction_loss_only:
        raise IGPTError("--prediction_loss_only true leaves nothing to choose the best model by: leave it out.")
    is_by_steps = args.eval_strategy == IntervalStrategy.STEPS
    limit = args.max_steps if args.max_steps != -1 else args.num_train_epochs
    if args.eval_delay > limit and is_by_steps == (args.max_steps != -1):  # both in steps, or both in epochs
        raise IGPTError(
            f"--eval_delay {args.eval_delay} is later than the end of the training: there is no evaluation."
        )
    measured = [f"{split}_{metric}" for split in ("validation", "train") for metric in METRICS[task]]
    if args.metric_for_best_model.removeprefix("eval_") not in measured:
        raise IGPTError(
            f"--metric_for_best_model {args.metric_for_best_model} is not measured; there are {', '.join(measured)}."
        )


def _may_learn_guidance(script_args, model_args, args) -> bool:
    """Whether `--built_in_guidance` can have an effect, as far as flags tell (`IGPTTrainer.learns_guidance`)."""
    is_generator = script_args.task == "generation" and model_args.preset != BASELINE_PRESET
    return is_generator and model_args.class_dropout_prob != 0 and args.label_smoothing_factor == 0


def unused_flags(script_args, model_args, args, argv: list[str] | None = None) -> list[str]:
    """Name the flags that were given, on the command line or in the YAML file, and change nothing in this run.

    Args:
        script_args: From `parse_arguments`, as the next two.
        model_args: For the preset.
        args: `IGPTTrainingArguments`.
        argv: The command line; the process's own unless given.
    """
    settings, argv = _split_off_config(argv)
    given = {name for name, value in settings.items() if value is not None}
    given |= {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    muon = "--use_muon true" if model_args.preset != BASELINE_PRESET else f"another --preset than {BASELINE_PRESET}"
    conditions = [
        (("eval_steps",), args.eval_strategy == IntervalStrategy.STEPS, "without --eval_strategy steps"),
        (("save_steps",), args.save_strategy == SaveStrategy.STEPS, "without --save_strategy steps"),
        (("save_total_limit",), args.save_strategy != SaveStrategy.NO, "with --save_strategy no"),
        (("logging_steps",), args.logging_strategy == IntervalStrategy.STEPS, "without --logging_strategy steps"),
        (("num_train_epochs",), args.max_steps == -1, "beside --max_steps"),
        (("muon_learning_rate",), args.use_muon, f"without {muon}"),
        (("use_muon",), model_args.preset != BASELINE_PRESET, f"with --preset {BASELINE_PRESET}"),
        (("optim", "optim_args"), not args.use_muon, "without --use_muon false"),
        (("labels_from",), not script_args.streaming, "with --streaming true"),
        (("shuffle_buffer", "max_eval_images"), script_args.streaming, "without --streaming true"),
        (
            ("built_in_guidance",),
            args.built_in_guidance == 1 or _may_learn_guidance(script_args, model_args, args),
            "where no class or no likelihood is learned, or no class dropped",
        ),
        (
            ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "hub_token"),
            args.push_to_hub,
            "without --push_to_hub true",
        ),
        (("do_train", "do_eval", "do_predict"), False, "here: a run trains, evaluates and reads the test split"),
    ]
    return [
        f"--{name} has no effect {why}."
        for names, is_used, why in conditions
        for name in names
        if name in given and not is_used
    ]
