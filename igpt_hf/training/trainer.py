"""What the Hugging Face Trainer needs to train an Image GPT on binary images.

The Trainer does the work. What is ours: a data set that hands out whole batches of tokens, the exact likelihood per
image as the metric that selects the best model, a refusal to overwrite another run, and the pictures of a run.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from transformers import EarlyStoppingCallback, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState, ProgressCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.streaming import ShardedTokens, TokenStream
from ..errors import DataError
from ..hub.push import ask_hub, push_folder
from ..model.configuration_igpt import PRESETS, IGPTConfig
from ..model.image_processing_igpt import pixels_to_tokens
from ..model.modeling_igpt import IGPTForImageClassification
from .checkpoints import (
    RESULTS,
    last_complete_checkpoint,
    naming_the_last_checkpoint,
    resumes_from_the_end,
    whole_checkpoint,
)
from .imagegpt_baseline import STOCK_PRESET
from .optimizer import MuonAdamW, average_weights, swap_average


logger = logging.getLogger(__name__)

FEW_STEPS = 500
METRICS = {  # of each evaluated split; the best model can be chosen by any of them
    "generation": ("nats_per_image", "bits_per_pixel", "loss"),
    "classification": ("accuracy", "cross_entropy", "nats_per_image_unconditional", "loss"),
}
AT_LEAST = {
    1: (
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("num_threads", "shuffle_buffer", "max_eval_images"),
    ),
    0: (
        *("early_stopping_patience", "eval_steps", "save_steps", "logging_steps", "warmup_steps", "eval_delay"),
        *("save_total_limit", "learning_rate", "muon_learning_rate", "weight_decay", "max_grad_norm", "ema_decay"),
        *("dataloader_num_workers", "seed", "data_seed", "split_seed"),
    ),
}


# --- data -----------------------------------------------------------------------------------------------------------


class TokenDataset(torch.utils.data.Dataset):
    """A split as tensors, read a batch at a time.

    With `class_dropout_prob` the class prompt of an image is now and then the start token, so that one model learns
    to be conditional and unconditional (classifier-free guidance, Ho & Salimans 2022, algorithm 1). Where the split
    holds grey pictures, each pixel is white with the probability of its grey level. What is drawn depends on the
    seed, the epoch and the image's index alone: a resumed run, or one on more processes, draws the same.

    Args:
        split: Rows with `tokens` or `grey`, and `label`, as `igpt_hf.data.splits.tokenize` makes them.
        config: The model's configuration.
        class_dropout_prob: Share of images per epoch whose class is not told.
        seed: Of what is drawn.
    """

    def __init__(self, split, config, class_dropout_prob: float = 0.0, seed: int = 0):
        columns = split.with_format("numpy")
        self.grey = columns["grey"][:].astype(np.uint8) if "grey" in split.column_names else None
        self.tokens = None if self.grey is not None else torch.from_numpy(columns["tokens"][:].astype(np.int32))
        self.prompts = torch.from_numpy(columns["label"][:]).long() + config.vocab_size
        self.config = config
        self.class_dropout_prob = class_dropout_prob
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Draw the images whose class is not told in this epoch and, from grey pictures, the pixels."""
        generator = np.random.default_rng([self.seed, epoch])
        self.is_untold = torch.from_numpy(generator.random(len(self.prompts)) < self.class_dropout_prob)
        if self.grey is not None:
            pixels = (generator.random(self.grey.shape, dtype=np.float32) * 255 < self.grey).astype(np.uint8)
            pixels = pixels.reshape(-1, self.config.image_size, self.config.image_size)
            self.tokens = torch.from_numpy(pixels_to_tokens(pixels, self.config.patch_size).astype(np.int32))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `labels`, both (B, 1 + N); the prompt's label is -100."""
        index = torch.as_tensor(indices)
        tokens = self.tokens[index].long()
        prompts = self.prompts[index].where(~self.is_untold[index], self.config.start_token_id)[:, None]
        return {
            "input_ids": torch.cat([prompts, tokens], dim=1),
            "labels": torch.cat([torch.full_like(prompts, -100), tokens], dim=1),
        }


class LabelDataset(TokenDataset):
    """A split for `IGPTForImageClassification`: the labels are classes. The model itself leaves the prompts out."""

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` (B, 1 + N) and `labels` (B,)."""
        classes = self.prompts[torch.as_tensor(indices)] - self.config.vocab_size
        return {"input_ids": super().__getitems__(indices)["input_ids"], "labels": classes}


def collate(batch: dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """`TokenDataset` hands out whole batches already, a stream does not; no cache is built to train or evaluate."""
    if isinstance(batch, list):
        batch = torch.utils.data.default_collate(batch)
    return {**batch, "use_cache": False}


# --- arguments ------------------------------------------------------------------------------------------------------


@dataclass
class DataArguments:
    """What is learned, from which images, and how they become binary."""

    task: Literal["generation", "classification"] = field(
        default="generation", metadata={"help": "Draw images, or tell their class (section 3.3, fine-tuning)."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Start from this checkpoint, with its configuration; default: from scratch."}
    )
    data: str = field(
        default="synthetic",
        metadata={
            "help": "synthetic, a folder of class folders, .cdb files (comma separated), parquet, a Hub dataset id."
        },
    )
    image_column: str = field(default="image", metadata={"help": "Parquet and Hub: the column of images."})
    label_column: str = field(default="label", metadata={"help": "Parquet and Hub: the column of classes."})
    max_images: int | None = field(default=None, metadata={"help": "Use a random part of so many images only."})
    split_seed: int | None = field(
        default=None, metadata={"help": "Of the split into train, validation and test; `seed` unless given."}
    )
    skip_bad_images: bool = field(default=False, metadata={"help": "Count and leave out images that cannot be read."})
    threshold: float = field(default=0.5, metadata={"help": "Grey level in (0, 1] from which on a pixel is white."})
    invert: str = field(default="auto", metadata={"help": "auto (light borders), never or always."})
    margin: int | None = field(
        default=None,
        metadata={"help": "Pixels kept free around tight crops; default: image_size / 14, which is 2 of 28."},
    )
    binarize: str = field(default="threshold", metadata={"help": "threshold, or stochastic: anew in each epoch."})
    streaming: bool = field(
        default=False, metadata={"help": "Parquet and Hub: tokenize shard by shard into a cache, train from the disk."}
    )
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Streaming: images among which one is drawn next."})
    max_eval_images: int = field(
        default=10_000, metadata={"help": "Streaming: validation and test images that are evaluated, at most, each."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads per process; default: all cores."})

    def get_split_seed(self, seed: int) -> int:
        """Seed of the split, where `seed` is that of the training."""
        return seed if self.split_seed is None else self.split_seed


def _config_arguments() -> type:
    """A dataclass with a flag for the preset and one for each field of `IGPTConfig`; None: the preset decides."""
    presets = ", ".join([*PRESETS, STOCK_PRESET])
    meanings = dict(re.findall(r"^ {8}(\w+): ((?:.+\n)(?: {12}.+\n)*)", IGPTConfig.__doc__, re.MULTILINE))
    meanings = {name: " ".join(text.split()) for name, text in meanings.items()}
    fields = [("preset", str, field(default="xxs", metadata={"help": f"The model: {presets}."}))]
    taken = {training_field.name for training_field in dataclasses.fields(TrainingArguments)}  # use_cache
    for config_field in dataclasses.fields(IGPTConfig):
        if config_field.name in meanings and config_field.name not in taken:
            kind = next(t for t in (bool, float, int, str) if t.__name__ in str(config_field.type))
            default = config_field.default if config_field.name not in PRESETS["xxs"] else "the preset's"
            help_text = f"{meanings[config_field.name]} Unless given: {default}."
            fields.append((config_field.name, kind | None, field(default=None, metadata={"help": help_text})))
    return dataclasses.make_dataclass("ConfigArguments", fields)


ConfigArguments = _config_arguments()


def parse_arguments(argv: list[str] | None = None):
    """Parse the command line of scripts/train.py -> (DataArguments, ConfigArguments, IGPTTrainingArguments).

    `--config FILE.yaml` holds flags without their dashes; flags on the command line win over it.

    Raises:
        DataError: The YAML file is missing or not a flat mapping, or a flag is unknown or cannot be used.
        SystemExit: A value of the wrong type, or `--help`.
    """
    settings, argv = _split_off_config(argv)
    parser = HfArgumentParser((DataArguments, ConfigArguments, IGPTTrainingArguments), allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="Flags as lines of `flag: value`; those here win.")
    parser.prog = "igpt train"
    parser.set_defaults(**{name: None for name, value in settings.items() if value is None})
    flags = []
    for name, value in settings.items():
        if value is not None or name not in {action.dest for action in parser._actions}:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    *arguments, namespace, unknown = parser.parse_args_into_dataclasses(flags + argv, return_remaining_strings=True)
    if unknown:
        raise DataError(f"unknown flag {' '.join(unknown)}; --help lists all.")
    data_args, config_args, args = arguments
    if config_args.preset == STOCK_PRESET:
        args.use_muon = False  # the library's model, trained as the library would
    if data_args.task == "classification":
        if data_args.streaming:
            raise DataError("--streaming is for --task generation: a classifier's data must fit into memory.")
        if args.metric_for_best_model == type(args).metric_for_best_model:  # the one of generation
            args.metric_for_best_model, args.greater_is_better = "eval_validation_accuracy", True
    _check_numbers(vars(data_args) | vars(args))
    _check_length(args)
    _check_selection(data_args.task, args)
    return tuple(arguments)


def _split_off_config(argv: list[str] | None) -> tuple[dict, list[str]]:
    """The lines of the file that `--config` names, and the other words of the command line."""
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path)
    namespace, argv = config_parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    return {} if namespace.config is None else _read_yaml(namespace.config), argv


def _check_numbers(values: dict):
    for minimum, names in AT_LEAST.items():
        for name in names:
            if values[name] is not None and not values[name] >= minimum:  # not a number is refused, too
                raise DataError(f"--{name} must be at least {minimum}, got {values[name]}")
    if values["ema_decay"] >= 1:
        raise DataError(f"--ema_decay must be below 1, or the average never moves; got {values['ema_decay']}")


def _check_length(args):
    """Refuse a run of no steps at all."""
    if args.max_steps != -1 and args.max_steps < 1:  # -1: as many as num_train_epochs make
        raise DataError(f"--max_steps {args.max_steps} leaves nothing to train: take at least 1, or leave it out.")
    if args.max_steps == -1 and not 0 < args.num_train_epochs < math.inf:
        raise DataError(
            f"--num_train_epochs {args.num_train_epochs} cannot be trained: take more than 0, or --max_steps."
        )
    if args.max_minutes is not None and not args.max_minutes > 0:
        raise DataError(f"--max_minutes {args.max_minutes} leaves no time to train: take more than 0.")


def _check_selection(task: str, args):
    """Refuse what leaves nothing to choose the best model by, or names what is not measured."""
    if args.eval_strategy == "no":
        raise DataError("--eval_strategy no leaves nothing to choose the best model by: take epoch or steps.")
    if args.prediction_loss_only:
        raise DataError("--prediction_loss_only true leaves nothing to choose the best model by: leave it out.")
    is_by_steps = args.eval_strategy == IntervalStrategy.STEPS
    limit = args.max_steps if args.max_steps != -1 else args.num_train_epochs
    if args.eval_delay > limit and is_by_steps == (args.max_steps != -1):  # both in steps, or both in epochs
        raise DataError(
            f"--eval_delay {args.eval_delay} is later than the end of the training: there is no evaluation."
        )
    measured = [f"{split}_{metric}" for split in ("validation", "train") for metric in METRICS[task]]
    if args.metric_for_best_model.removeprefix("eval_") not in measured:
        raise DataError(
            f"--metric_for_best_model {args.metric_for_best_model} is not measured; there are {', '.join(measured)}."
        )


def unused_flags(data_args, config_args, args, argv: list[str] | None = None) -> list[str]:
    """Name the flags that were given, on the command line or in the YAML file, and change nothing in this run.

    Args:
        data_args: From `parse_arguments`, as the next two.
        config_args: For the preset.
        args: `IGPTTrainingArguments`.
        argv: The command line; the process's own unless given.
    """
    settings, argv = _split_off_config(argv)
    given = {name for name, value in settings.items() if value is not None}
    given |= {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    muon = "--use_muon true" if config_args.preset != STOCK_PRESET else f"another --preset than {STOCK_PRESET}"
    conditions = [
        (("eval_steps",), args.eval_strategy == IntervalStrategy.STEPS, "without --eval_strategy steps"),
        (("save_steps",), args.save_strategy == SaveStrategy.STEPS, "without --save_strategy steps"),
        (("save_total_limit",), args.save_strategy != SaveStrategy.NO, "with --save_strategy no"),
        (("logging_steps",), args.logging_strategy == IntervalStrategy.STEPS, "without --logging_strategy steps"),
        (("num_train_epochs",), args.max_steps == -1, "beside --max_steps"),
        (("muon_learning_rate",), args.use_muon, f"without {muon}"),
        (("use_muon",), config_args.preset != STOCK_PRESET, f"with --preset {STOCK_PRESET}"),
        (("optim", "optim_args"), not args.use_muon, "without --use_muon false"),
        (("shuffle_buffer", "max_eval_images"), data_args.streaming, "without --streaming true"),
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


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise DataError(f"--config {path}: no such file.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"--config {path} must be lines of `flag: value`: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or any(isinstance(value, dict) for value in settings.values()):
        raise DataError(f"--config {path} must be lines of `flag: value`, without dashes and nesting.")
    return settings


def use_all_cores(num_threads: int | None = None) -> int:
    """Share the CPU cores among the processes of this machine; returns the threads that each one uses.

    `accelerate launch` sets OMP_NUM_THREADS=1 unless told otherwise, which leaves a CPU run on one core.
    """
    if num_threads is None:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        can_ask = hasattr(os, "sched_getaffinity")  # Linux: the cores that this process may use
        num_cores = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count()
        num_threads = max(1, num_cores // local_processes)
    torch.set_num_threads(num_threads)
    return num_threads


@dataclass
class IGPTTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for small Image GPTs; every flag of the original works."""

    output_dir: str = field(default="runs/igpt", metadata={"help": "Where the model, its card and pictures go."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start anew: delete the run in output_dir."})
    early_stopping_patience: int = field(
        default=5,
        metadata={"help": "Stop after this many evaluations in a row without a better validation loss; 0: never."},
    )
    num_train_epochs: float = field(default=30, metadata={"help": "Passes over the training split, at most."})
    max_minutes: float | None = field(
        default=None,
        metadata={
            "help": "Stop after so many minutes of training, evaluations and earlier parts of a resumed run included; "
            "a last evaluation follows. The learning rate decays over num_train_epochs (or max_steps) all the same."
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
        default=0.1, metadata={"help": "Of matrices. Without it Muon lets them grow, and small models stop learning."}
    )
    ema_decay: float = field(
        default=0.998, metadata={"help": "Evaluate and keep a moving average of the weights; 0: the weights."}
    )
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Shape of the learning rate's decay."})
    warmup_steps: float = field(default=0.02, metadata={"help": "Steps, or a share below 1, of linear warm-up."})
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
        default=True, metadata={"help": "A resumed run remembers the patience that it has used up."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The data set yields what the model takes."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All parameters are used."})
    data_seed: int | None = field(default=None, metadata={"help": "Order of the images; `seed` unless given."})
    logging_steps: float = field(default=50, metadata={"help": "Log the running training loss every so many steps."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "The batches are small."})
    hub_strategy: str = field(
        default="end",
        metadata={"help": "With --push_to_hub: at the end, with the card; or what else the library has."},
    )
    # The Trainer writes this into the config that it saves; while training, `collate` switches the cache off.
    use_cache: bool = field(default=True, metadata={"help": "Saved with the model: generate with a cache."})

    def __post_init__(self):
        self.metric_for_best_model = f"eval_{self.metric_for_best_model.removeprefix('eval_')}"
        if self.greater_is_better is None:
            self.greater_is_better = self.metric_for_best_model.endswith("accuracy")
        super().__post_init__()


# --- metrics --------------------------------------------------------------------------------------------------------


def nats_per_image(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Reduce logits to what is exact per image: (B, T, V), (B, T) -> (B,) nats, float64, wherever the batch ends."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return losses.double().sum(dim=1)


def likelihood_metrics(num_pixels: int):
    """Make the Trainer's `compute_metrics`: mean nats per image, its standard error, and bits per pixel."""

    def compute_metrics(prediction) -> dict[str, float]:
        nats = np.asarray(prediction.predictions, dtype=np.float64)
        return {
            "nats_per_image": float(nats.mean()),
            "nats_per_image_stderr": float(nats.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else 0.0,
            "bits_per_pixel": float(nats.mean() / (num_pixels * math.log(2))),
        }

    return compute_metrics


def classification_metrics(prediction) -> dict[str, float]:
    """The Trainer's `compute_metrics` for a classifier; exact means over the images, wherever a batch ends."""
    logits, nats = (torch.from_numpy(np.asarray(array)).double() for array in prediction.predictions)  # (n, C), (n,)
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    is_right = (logits.argmax(dim=1) == labels).double()
    return {
        "accuracy": is_right.mean().item(),
        "accuracy_stderr": (is_right.std() / math.sqrt(len(labels))).item() if len(labels) > 1 else 0.0,
        "cross_entropy": torch.nn.functional.cross_entropy(logits, labels).item(),
        "nats_per_image_unconditional": nats.mean().item(),
    }


@dataclass
class LossHistory:
    """A metric of train and validation, nats per image unless said otherwise, measured alike at the same steps."""

    steps: list[int]
    epochs: list[float]
    train: list[float]
    validation: list[float]

    @classmethod
    def from_log(cls, log_history: list[dict], metric: str = "nats_per_image") -> "LossHistory":
        """Read the Trainer's log: the evaluations of both splits, joined by step."""
        rows: dict[int, dict[str, float]] = {}
        for entry in log_history:
            for split in ("train", "validation"):
                if f"eval_{split}_{metric}" in entry:
                    row = rows.setdefault(entry["step"], {"step": entry["step"], "epoch": entry["epoch"]})
                    row[split] = entry[f"eval_{split}_{metric}"]
        complete = [row for _, row in sorted(rows.items()) if "train" in row and "validation" in row]
        return cls(*([row[key] for row in complete] for key in ("step", "epoch", "train", "validation")))

    @property
    def best(self) -> int:
        """Index of the evaluation with the lowest validation loss."""
        return int(np.argmin(self.validation))

    def is_monotonic(self, split: str) -> bool:
        """Whether the loss fell at every evaluation up to the best one."""
        return bool(np.all(np.diff(getattr(self, split)[: self.best + 1]) < 0))


# --- callbacks ------------------------------------------------------------------------------------------------------


class PatientEarlyStopping(EarlyStoppingCallback):
    """Early stopping that looks at the validation split's evaluation only; the others do not have its metric.

    A resumed run has used up the patience that its checkpoint says, and may have none left. Patience 0 has no end.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0:  # not resumed, perhaps the second `train()` of one Trainer
            self.early_stopping_patience_counter = 0
        self.early_stopping_patience = args.early_stopping_patience  # not the checkpoint's, which may be another
        control.should_training_stop |= self._is_used_up()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if args.metric_for_best_model in metrics:
            self.check_metric_value(args, state, control, metrics[args.metric_for_best_model])
            control.should_training_stop |= self._is_used_up()

    def _is_used_up(self) -> bool:
        return 0 < self.early_stopping_patience <= self.early_stopping_patience_counter


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds of training, evaluations included, and the end of it at `--max_minutes`.

    Checkpoints keep the seconds, so that a resumed run counts the whole.
    """

    def __init__(self):
        self.seconds_before, self.start = 0.0, None

    @property
    def seconds(self) -> float:
        """Seconds so far, those before the checkpoint included."""
        return self.seconds_before + (0.0 if self.start is None else time.monotonic() - self.start)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()
        if state.global_step == 0:  # not resumed, perhaps the second `train()` of one Trainer
            self.seconds_before = 0.0
        control.should_training_stop |= state.global_step > 0 and self._is_over(args)  # a resumed run has had its time

    def on_step_end(self, args, state, control, **kwargs):
        """Stop at `--max_minutes`, with an evaluation and a checkpoint; strategy `epoch` makes them by itself."""
        if self._is_over(args):
            control.should_training_stop = True
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.STEPS
            control.should_save |= args.save_strategy == SaveStrategy.STEPS

    def _is_over(self, args) -> bool:
        if args.max_minutes is None:
            return False
        if args.world_size > 1:  # clocks differ: all take the latest, and stop at the same step
            latest = torch.tensor(self.seconds, device=args.device)
            torch.distributed.all_reduce(latest, torch.distributed.ReduceOp.MAX)
            self.seconds_before += latest.item() - self.seconds
            return latest.item() >= 60 * args.max_minutes
        return self.seconds >= 60 * args.max_minutes

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds_before, self.start = self.seconds, None

    def state(self) -> dict:
        """What a checkpoint keeps, in the library's form."""
        return {"args": {}, "attributes": {"seconds_before": self.seconds}}


class EpochCallback(TrainerCallback):
    """Tell the training data which epoch it is."""

    def __init__(self, dataset: TokenDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_epoch(int(state.epoch + 1e-6))  # a resumed epoch has begun already


class OneLineProgress(ProgressCallback):
    """The Trainer's progress bars, with one line for each evaluation instead of the whole log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if self.training_bar is not None and "eval_validation_accuracy" in logs:
            nats, accuracy = logs["eval_validation_nats_per_image_unconditional"], logs["eval_validation_accuracy"]
            line = f"epoch {state.epoch:5.2f}  validation {accuracy:7.2%} right, {nats:7.2f} nats/image, class unknown"
            self.training_bar.write(line, file=sys.stderr)
        if self.training_bar is None or "eval_validation_nats_per_image" not in logs:
            return
        train = next(e["eval_train_nats_per_image"] for e in state.log_history[::-1] if "eval_train_loss" in e)
        validation = logs["eval_validation_nats_per_image"]
        self.training_bar.write(
            f"epoch {state.epoch:5.2f}  train {train:7.2f}  validation {validation:7.2f} nats/image", file=sys.stderr
        )


class SampleSheetCallback(TrainerCallback):
    """Draw a sheet of samples after each evaluation: a PNG in output_dir/samples, and a picture in the reports.

    The random state is put back afterwards, so that drawing does not change the training. With FSDP no sheet is drawn:
    the first process, which draws, has a part of the weights only.

    Args:
        draw: A function from the model to a PIL image.
    """

    def __init__(self, draw):
        self.draw = draw
        self.trainer: Trainer | None = None  # set by `make_trainer`: the way to the reports' writers

    def on_evaluate(self, args, state, control, metrics, model=None, **kwargs):
        if not state.is_world_process_zero or args.metric_for_best_model not in metrics:
            return
        if self.trainer is not None and self.trainer.is_fsdp_enabled:
            return
        with torch.random.fork_rng():
            sheet = self.draw(model)
        path = Path(args.output_dir) / "samples" / f"step-{state.global_step:06d}.png"
        with naming_the_last_checkpoint(path, args.output_dir):
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path)
        self._report(args, sheet, state.global_step)

    def _report(self, args, sheet, step: int):
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image("samples", np.asarray(sheet), step, dataformats="HW")
        if "wandb" in args.report_to:
            import wandb

            wandb.log({"samples": wandb.Image(sheet)}, commit=False)
        if "trackio" in args.report_to:
            import trackio

            trackio.log({"samples": trackio.Image(sheet)})


# --- trainer --------------------------------------------------------------------------------------------------------


class IGPTTrainer(Trainer):
    """The Trainer, with Muon where `--use_muon` asks for it, and no step on a loss that is no number.

    With `--ema_decay`, what is evaluated, saved and kept as the best model is the moving average of the weights. A
    checkpoint's model.safetensors holds the average, its optimizer.pt the weights themselves, and a resume swaps them
    back.
    """

    def training_step(self, *args, **kwargs):
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss

    def _get_grad_norm(self, *args, **kwargs):
        """Raises FloatingPointError, in all processes, before a loss or gradient that is no number gets into the
        weights; says where the last good checkpoint is."""
        norm = super()._get_grad_norm(*args, **kwargs)
        scales = self.accelerator.scaler is not None  # fp16: the scaler leaves out steps of infinite gradients
        if not (math.isfinite(self.last_loss) and (scales or math.isfinite(norm))):
            raise FloatingPointError(
                f"the training loss is {float(self.last_loss)} and the gradient's norm {float(norm)} at step "
                f"{self.state.global_step + 1}. Last complete checkpoint: "
                f"{last_complete_checkpoint(self.args.output_dir) or 'none'}. Lower --learning_rate; resume or start "
                "anew."
            )
        return norm

    def init_hf_repo(self, *args, **kwargs):
        repo = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        ask_hub(lambda: super(IGPTTrainer, self).init_hf_repo(*args, **kwargs), repo, self.args.hub_token)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs) -> str | None:
        """Upload what scripts/push_to_hub.py uploads, with the run's card as it is, not one of the library's.

        Raises DataError where the Hub refuses or cannot be reached; the folder stays as it is.
        """
        if self.hub_model_id is None:
            self.init_hf_repo()
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return push_run(self.args, self.hub_model_id, commit_message)

    def save_state(self):
        """Write trainer_state.json, with what the callbacks know at the end: `end_reached` reads it."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        super().save_state()

    def _run_epoch(self, **kwargs):
        # A resumed run may have taken its last step already, or have had its patience or its --max_minutes.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(**kwargs)

    has_own_optimizer = False  # whether the optimizer was made here, not given

    def create_optimizer(self, model=None):
        """Make the optimizer, a new one for each training.

        One of an earlier `train()`, or of an attempt that ran out of memory (`--auto_find_batch_size`), has momentum
        and averages that are not this training's.
        """
        args = self.args
        if self.is_fsdp_enabled and args.use_muon:
            raise ValueError("Muon needs whole matrices, and FSDP cuts them into parts: --use_muon false.")
        if self.has_own_optimizer:
            self.optimizer = None
        self.has_own_optimizer = self.optimizer is None
        if self.optimizer is None and args.use_muon:
            self.optimizer = MuonAdamW(
                *(self.model if model is None else model, args.learning_rate, args.muon_learning_rate),
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        super().create_optimizer(model)
        if args.ema_decay > 0:
            average_weights(self.optimizer, args.ema_decay)
        return self.optimizer

    has_average = False  # whether the model has the averaged weights at the moment

    @contextlib.contextmanager
    def averaged(self):
        """The model has the averaged weights inside. After training it has the best of them, and keeps them."""
        swaps = self.args.ema_decay > 0 and self.is_in_train and self.state.global_step > 0 and not self.has_average
        if swaps:
            swap_average(self.optimizer)
            self.has_average = True
        try:
            yield
        finally:
            if swaps:
                swap_average(self.optimizer)
                self.has_average = False

    def get_eval_dataloader(self, *args, **kwargs):
        """The likelihood is that of all images: `--dataloader_drop_last` is for training only."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, *args, **kwargs):
        with self.averaged():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with whole_checkpoint(self), self.averaged():
            super()._save_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.args.auto_find_batch_size and not self.is_fsdp_enabled:
            self._load_from_checkpoint(checkpoint)  # an attempt that ran out of memory has changed the weights
        if self.args.ema_decay > 0:
            swap_average(self.optimizer)

    def _finalize_training(self, *args, **kwargs):
        if self.args.ema_decay > 0 and not (self.args.load_best_model_at_end and self.state.best_model_checkpoint):
            swap_average(self.optimizer)  # there is no best model to load
        return super()._finalize_training(*args, **kwargs)


def push_run(args: IGPTTrainingArguments, repo: str | None = None, message: str = "End of training") -> str:
    """Upload the finished run in output_dir as `--push_to_hub` asks for; returns the commit's address.

    Raises DataError where the Hub refuses or cannot be reached.
    """
    folder = Path(args.output_dir)
    about = {"private": args.hub_private_repo, "revision": args.hub_revision, "token": args.hub_token}
    return push_folder(folder, repo or args.hub_model_id or folder.absolute().name, message=message, **about)


# --- the end of a run -----------------------------------------------------------------------------------------------


def end_reached(args: IGPTTrainingArguments, state: TrainerState) -> str | None:
    """Which of the ends that were asked for has come: max_steps, epochs, early_stopping or max_minutes; None if none.

    Args:
        args: What is asked for, perhaps more than when `state` was saved.
        state: As `IGPTTrainer.save_state` leaves it.
    """
    if args.max_steps > 0 and state.global_step >= args.max_steps:
        return "max_steps"
    if args.max_steps <= 0 and state.epoch + 1e-6 >= args.num_train_epochs:
        return "epochs"
    if 0 < args.early_stopping_patience <= _evaluations_without_gain(state):
        return "early_stopping"
    if args.max_minutes is not None and _seconds(state) >= 60 * args.max_minutes:
        return "max_minutes"
    return None


def _evaluations_without_gain(state: TrainerState) -> int:
    return state.stateful_callbacks[PatientEarlyStopping.__name__]["attributes"]["early_stopping_patience_counter"]


def _seconds(state: TrainerState) -> float:
    return state.stateful_callbacks[Stopwatch.__name__]["attributes"]["seconds_before"]


def finished_message(args: IGPTTrainingArguments) -> str | None:
    """Say that the run that is to be resumed has nothing left to do; None if it has, or none is to be resumed.

    A run is finished when its results are written and it has come to an end that `args` ask for.
    """
    folder = Path(args.output_dir)
    files = [folder / RESULTS, folder / "trainer_state.json"]
    if not (resumes_from_the_end(args) and all(path.is_file() for path in files)):
        return None
    state = TrainerState.load_from_json(str(files[1]))
    end = end_reached(args, state)
    if end is None:
        return None
    had, flag = {
        "max_steps": (f"{state.global_step} steps", "max_steps"),
        "epochs": (f"{state.epoch:.4g} epochs", "num_train_epochs"),
        "early_stopping": (
            f"{_evaluations_without_gain(state)} evaluations without a gain",
            "early_stopping_patience",
        ),
        "max_minutes": (f"{_seconds(state) / 60:.4g} minutes", "max_minutes"),
    }[end]
    return (
        f"{folder} holds a finished run ({had}; --{flag} {getattr(args, flag)}), which is left as it is. To train on, "
        f"give a larger --{flag}."
    )


def few_steps_hint(args: IGPTTrainingArguments, num_images: int) -> str | None:
    """Advise smaller batches where a run would take few steps, with which a model learns little; None otherwise.

    Args:
        args: Of the run.
        num_images: To train on.
    """
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = math.ceil(args.num_train_epochs * math.ceil(num_images / per_step))
    if steps >= FEW_STEPS or per_step <= 8 or args.max_steps > 0:
        return None
    return (
        f"{num_images} images in batches of {per_step} make {steps} steps in all, which is little to learn from: try "
        "--per_device_train_batch_size 8 --num_train_epochs 60 (early stopping ends it sooner)."
    )


def make_trainer(
    model,
    args: IGPTTrainingArguments,
    splits,
    processor,
    callbacks=(),
    layout: IGPTConfig | None = None,
    shuffle_buffer: int = 10_000,
) -> Trainer:
    """Wire a Trainer: tokenised splits in, exact nats per image of train and validation at each evaluation.

    The training loss is measured like the validation loss, on a fixed part of the training split of the same size, in
    eval mode, so that the two curves can be compared. An `IGPTForImageClassification` gets its accuracy, too.

    Args:
        model: An `IGPTForCausalImageModeling`, an `IGPTForImageClassification`, or the model of
            `igpt_hf.training.imagegpt_baseline`.
        args: Of the run.
        splits: From `igpt_hf.data.splits.tokenize`; the training split may be `ShardedTokens`, to be streamed.
        processor: Saved along with the model.
        callbacks: More than the usual ones.
        layout: How images are laid out in tokens, where the model's configuration does not say it.
        shuffle_buffer: Images of a stream that are shuffled at a time.
    """
    config = model.config if layout is None else layout
    is_classifier = isinstance(model, IGPTForImageClassification)
    dataset = LabelDataset if is_classifier else TokenDataset
    validation = dataset(splits["validation"], config, seed=args.seed)
    part_size = min(len(validation), len(splits["train"]))
    if isinstance(splits["train"], ShardedTokens):
        args.accelerator_config.dispatch_batches = False  # each process reads for itself, and keeps its part
        train = TokenStream(splits["train"], config, config.class_dropout_prob, args.seed, shuffle_buffer)
        part = splits["train"].head("train", part_size)
    else:
        train = dataset(splits["train"], config, config.class_dropout_prob, seed=args.seed)
        part = splits["train"].select(range(part_size))
    part_of_train = dataset(part, config, seed=args.seed)
    trainer = IGPTTrainer(
        model,
        args,
        data_collator=collate,
        train_dataset=train,
        eval_dataset={"train": part_of_train, "validation": validation},
        processing_class=processor,
        preprocess_logits_for_metrics=None if is_classifier else nats_per_image,
        compute_metrics=classification_metrics if is_classifier else likelihood_metrics(config.num_pixels),
        callbacks=[
            EpochCallback(train),
            Stopwatch(),
            PatientEarlyStopping(args.early_stopping_patience),
            *callbacks,
        ],
    )
    for callback in callbacks:
        if isinstance(callback, SampleSheetCallback):
            callback.trainer = trainer
    if trainer.pop_callback(ProgressCallback) is not None:  # None with --disable_tqdm
        trainer.add_callback(OneLineProgress)
    return trainer
