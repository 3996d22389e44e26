"""The results of a finished training run: all_results.json, figures and the model card."""

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, TrainingArguments, set_seed

from .. import __version__
from ..data.splits import describe_splits
from ..distributed import precision
from ..errors import IGPTError
from ..evaluation.typicality import NUM_IMAGES, nats_quantiles
from ..hub.model_card import hardware, make_classifier_card, make_model_card, versions
from ..model.modeling_igpt import IGPTForCausalImageModeling
from ..plots import accuracy_curve, completion_sheet, loss_curve, parts_sheet, sample_sheet, save_figure
from .arguments import ScriptArguments
from .callbacks import Stopwatch
from .file_names import RESULTS
from .metrics import LossHistory
from .stopping import end_reached
from .trainer import GUIDED_FROM


def _about_data(args, script_args: ScriptArguments, given: tuple[str, ...]) -> dict:
    """What the images were and how they were split: what `seen_images_warning` asks for."""
    return {
        "data": script_args.data,
        "model_name_or_path": script_args.model_name_or_path,
        "seed": args.seed,
        "split_seed": script_args.get_split_seed(args.seed),
        "splits": "given" if given else "random",
        "given_splits": list(given),
        "max_images": script_args.max_images,
        "streaming": script_args.streaming,
        "new_digits_each_epoch": script_args.draws_digits,
        "augment": script_args.augment,
        "augment_fade_from": script_args.augment_fade_from if script_args.augment else None,
    }


def best_evaluation(trainer, history: LossHistory) -> int:
    """Index of the evaluation of the model that a run keeps: the best that was saved, or else the last one.

    Raises:
        IGPTError: There was no evaluation.
    """
    if not history.steps:
        raise IGPTError(f"the training ended before its first evaluation: --eval_delay {trainer.args.eval_delay}.")
    saved = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    step = trainer.state.global_step if saved is None else int(saved.rpartition("-")[2])
    return max(index for index, evaluated in enumerate(history.steps) if evaluated <= step)


def collect_results(trainer, test: dict[str, float], script_args: ScriptArguments, given: tuple[str, ...]) -> dict:
    """Gather the numbers of a run for all_results.json; nats are per image, exact, given the class."""
    args, history = trainer.args, LossHistory.from_log(trainer.state.log_history)
    errors = LossHistory.from_log(trainer.state.log_history, "nats_per_image_stderr")
    kept = best_evaluation(trainer, history)
    stopwatch = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Stopwatch))
    return {
        "train_nats_per_image": history.train[kept],
        "train_nats_per_image_stderr": errors.train[kept],
        "validation_nats_per_image": history.validation[kept],
        "validation_nats_per_image_stderr": errors.validation[kept],
        "test_nats_per_image": test["test_nats_per_image"],
        "test_nats_per_image_stderr": test["test_nats_per_image_stderr"],
        "test_bits_per_pixel": test["test_bits_per_pixel"],
        "num_parameters": trainer.model.num_parameters(),
        "num_grids": getattr(trainer.model.config, "num_grids", 1),
        "epochs": trainer.state.epoch,
        "stopped": end_reached(args, trainer.state),
        "best_epoch": history.epochs[kept],
        "train_runtime": stopwatch.seconds,
        "train_images_per_second": trainer.state.global_step * args.images_per_step / stopwatch.seconds,
        **_about_data(args, script_args, given),
        "monotonic_train_loss": history.is_monotonic("train"),
        "monotonic_validation_loss": history.is_monotonic("validation"),
    }


def collect_classification_results(
    trainer, test: dict[str, float], script_args: ScriptArguments, given: tuple[str, ...]
) -> dict:
    """Gather the numbers of a classifier's run for all_results.json; nats are per image, from the start token."""
    args, state = trainer.args, trainer.state
    stopwatch = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Stopwatch))
    results: dict[str, Any] = {"task": "classification"}
    for name in ("accuracy", "nats_per_image_unconditional"):
        history = LossHistory.from_log(state.log_history, name)
        kept = best_evaluation(trainer, history)
        results |= {f"train_{name}": history.train[kept], f"validation_{name}": history.validation[kept]}
    for name in ("accuracy", "accuracy_stderr", "cross_entropy", "nats_per_image_unconditional"):
        results[f"test_{name}"] = test[f"test_{name}"]
    return results | {
        "num_parameters": trainer.model.num_parameters(),
        "epochs": state.epoch,
        "stopped": end_reached(args, state),
        "best_epoch": history.epochs[kept],
        "metric_for_best_model": args.metric_for_best_model,
        "train_runtime": stopwatch.seconds,
        **_about_data(args, script_args, given),
    }


def keep_nats_quantiles(trainer):
    """Measure the nats of validation images for the model's configuration, by which `igpt score` ranks others."""
    model, validation = trainer.model, trainer.eval_dataset["validation"]
    if isinstance(model, IGPTForCausalImageModeling) and not trainer.is_fsdp_enabled:
        ids = validation.__getitems__(range(min(len(validation), NUM_IMAGES)))["input_ids"]
        model.config.nats_quantiles = nats_quantiles(model.eval(), ids)


def format_results(results: dict, folder: str, command: str | None) -> str:
    """The results of a run as a short table, why it ended, where they are, and the command to type next."""
    splits = ("train", "validation", "test")
    if results.get("task") == "classification":
        lines = [f"{split:>12} {results[f'{split}_accuracy']:8.2%} right" for split in splits]
    else:
        nats = [(results[f"{split}_nats_per_image"], results[f"{split}_nats_per_image_stderr"]) for split in splits]
        shown = [f"{value:8.2f} ± {error:.2f}" for value, error in nats]
        lines = [f"{split:>12} {text} nats/image given the class" for split, text in zip(splits, shown, strict=True)]
        lines[-1] += f"; {results['test_bits_per_pixel']:.4f} bits/pixel"
    ends = {
        "epochs": "all epochs are done",
        "max_steps": "all steps are done",
        "max_minutes": "the time is up",
        "early_stopping": "the validation loss did not improve any more (--early_stopping_patience)",
    }
    epochs = f"best epoch {results['best_epoch']:.4g} of {results['epochs']:.4g}"
    lines += [
        f"{epochs}, {results['train_runtime'] / 60:.1f} minutes: {ends.get(results['stopped'], 'stopped')}",
        f"{folder} holds the best model, its card, figures and {RESULTS}",
        *([f"next: {command}"] if command else []),
    ]
    return "\n".join(lines)


def next_command(trainer, script_args: ScriptArguments) -> str | None:
    """What to type after a run: to sample from its model and evaluate it on the same test split, or to share it.

    None after transformers' own ImageGPT, which the other commands do not read.
    """
    folder = trainer.args.output_dir
    if script_args.task == "classification":
        return shlex.join(["igpt", "push", folder, "user/name"])
    if not isinstance(trainer.model, IGPTForCausalImageModeling):
        return None
    sample = shlex.join(["igpt", "sample", folder])
    if script_args.streaming or script_args.max_images is not None:  # whose split igpt evaluate does not make
        return sample
    split_seed = script_args.get_split_seed(trainer.args.seed)
    evaluate = ["igpt", "evaluate", folder, "--data", script_args.data]
    evaluate += [] if split_seed == TrainingArguments.seed else ["--seed", str(split_seed)]
    for name in ("image_column", "label_column", "labels_from", "splits"):
        if (value := getattr(script_args, name)) != getattr(ScriptArguments, name):
            evaluate += [f"--{name}", value]
    return f"{sample}; {shlex.join(evaluate)}"


def _write_results(results: dict, folder: Path):
    """Write all_results.json, at once and after all else: where it is, the run's files are complete."""
    unfinished = folder / f"{RESULTS}.tmp"
    unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / RESULTS)


def write_run(
    trainer, test: dict[str, float], processor, splits, script_args: ScriptArguments, *, given: tuple[str, ...]
) -> dict:
    """Write the results, figures and card of a run into its folder; returns the results.

    Args:
        trainer: After training, with the best model loaded and its state saved.
        test: Metrics of the test split.
        processor: Of the same run.
        splits: The images, before they became tokens; the completions show one test image per class.
        script_args: For the card's account of the data.
        given: The splits that came with the data.
    """
    if script_args.task == "classification":
        results = collect_classification_results(trainer, test, script_args, given)
        _write_classification_run(trainer, results, script_args)
    else:
        results = collect_results(trainer, test, script_args, given)
        _write_generation_run(trainer, processor, splits, results, script_args)
    return results


def _write_classification_run(trainer, results: dict, script_args: ScriptArguments):
    """Write accuracy_curve.png, README.md and all_results.json."""
    folder = Path(trainer.args.output_dir)
    history = LossHistory.from_log(trainer.state.log_history, "accuracy")
    curve = accuracy_curve(history.epochs, history.train, history.validation, results)
    save_figure(curve, folder / "accuracy_curve.png", script_args.figures)
    rows = [
        (split, results[f"{split}_accuracy"], results[f"{split}_nats_per_image_unconditional"])
        for split in ("train", "validation", "test")
    ]
    facts = {**results, "name": folder.name, "model_id": str(folder), "rows": rows, "source": script_args.data}
    facts["start"] = _shown_start(script_args.model_name_or_path)
    facts["split_description"] = _describe_splits(results)
    make_classifier_card(facts).save(folder / "README.md")
    _write_results(results, folder)


def _write_generation_run(trainer, processor, splits, results: dict, script_args: ScriptArguments):
    """Write loss_curve.png, samples.png, completions.png, README.md and all_results.json."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    whole = AutoModelForCausalLM.from_pretrained(folder) if trainer.is_fsdp_enabled else trainer.model  # not a part
    model = whole.eval()
    history = LossHistory.from_log(trainer.state.log_history)

    form, best = script_args.figures, best_evaluation(trainer, history)
    curve = loss_curve(history.epochs, history.train, history.validation, best, results["test_nats_per_image"])
    save_figure(curve, folder / "loss_curve.png", form)
    set_seed(args.seed)
    sample_sheet(model, processor).save(folder / "samples.png", form)
    labels = splits["test"]["label"][:]
    shown = splits["test"].select([labels.index(label) for label in sorted(set(labels))][:10])
    complete = completion_sheet if model.config.model_type == "imagegpt" else parts_sheet  # which can only go on
    complete(model, processor, shown["image"][:], shown["label"][:]).save(folder / "completions.png", form)

    make_model_card(_card_facts(trainer, processor, splits, results, script_args, history)).save(folder / "README.md")
    _write_results(results, folder)


def _card_facts(trainer, processor, splits, results: dict, script_args: ScriptArguments, history: LossHistory) -> dict:
    args, config, num_pixels = trainer.args, trainer.model.config, processor.image_size**2
    split_facts = []
    for name, split in splits.items():
        nats = results[f"{name}_nats_per_image"]
        facts = {"name": name, "num_images": len(split), "nats": nats, "bits": nats / (num_pixels * math.log(2))}
        # The nats of the training split are those of the part that is evaluated beside the validation split.
        facts["num_measured"] = len(trainer.eval_dataset["train"]) if name == "train" else len(split)
        facts["stderr"] = results.get(f"{name}_nats_per_image_stderr")
        split_facts.append(facts)
    return {
        **results,
        "name": Path(args.output_dir).name,
        "model_id": args.output_dir,
        "is_imagegpt": config.model_type == "imagegpt",
        "source": script_args.data,
        "start": _shown_start(script_args.model_name_or_path),
        "split_description": _describe_splits(results),
        "num_images": sum(len(split) for split in splits.values()),
        "splits": split_facts,
        **{name: getattr(processor, name) for name in ("image_size", "patch_size")},
        **{name: getattr(config, name) for name in ("num_labels", "vocab_size")},
        **{name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        **{name: getattr(args, name) for name in ("learning_rate", "weight_decay", "max_grad_norm")},
        "class_names": ", ".join(config.id2label.values()),
        "num_pixels": num_pixels,
        "protocol": _protocol(processor),
        "sequence_length": config.max_position_embeddings,
        "num_evaluations": len(history.epochs),
        "is_best": best_evaluation(trainer, history) == history.best,
        "optimizer": f"Muon ({args.muon_learning_rate}) and AdamW" if args.use_muon else args.optim.value,
        "scheduler": args.lr_scheduler_type.value,
        "warmup_steps": f"{args.warmup_steps:.0%} of the steps" if args.warmup_steps < 1 else args.warmup_steps,
        "batch_size": args.images_per_step,
        "weights_kept": f"EMA, decay {args.ema_decay}" if args.ema_decay else "those of the step",
        "class_dropout_prob": trainer.train_dataset.class_dropout_prob,
        "built_in_guidance": args.built_in_guidance if _has_guidance(trainer, history) else None,
        "num_train_epochs": f"{trainer.state.num_train_epochs:.4g}",
        "num_steps": trainer.state.global_step,
        "precision": precision(args),
        "hardware": hardware(args.device, args.world_size),
        "versions": versions(),
        "package_version": __version__,
    }


def _has_guidance(trainer, history: LossHistory) -> bool:
    """Whether the model that is kept came after the step from which guidance is built in."""
    kept = history.steps[best_evaluation(trainer, history)]
    return trainer.learns_guidance and kept > GUIDED_FROM * trainer.state.max_steps


def _shown_start(name: str | None) -> str | None:
    """The checkpoint that a training began with, without the folders that lead to it."""
    if name is None or not Path(name).is_dir():
        return name
    return "/".join(Path(name).resolve().parts[-2 if Path(name).name.startswith("checkpoint-") else -1 :])


def _describe_splits(results: dict) -> str:
    return describe_splits(tuple(results["given_splits"]), results["split_seed"], results["streaming"])


def _protocol(processor) -> str:
    """How images were binarized: likelihoods are comparable only under the same protocol."""
    level = {
        "local": "where it is ink after uneven light was evened out",
        "auto": "from half of full gray on",
    }.get(processor.threshold, f"from {processor.threshold} of full gray on")
    binarization = {
        "threshold": f"a pixel is white {level}",
        "stochastic": "a pixel is white with the probability of its gray level, sampled anew in each epoch, once for "
        "validation and test",
    }[processor.binarize]
    if processor.levels not in (None, (0, 255)):
        binarization += "; gray levels from {:.0f} to {:.0f} are stretched to the full range".format(*processor.levels)
    if processor.widen_strokes:
        binarization += "; strokes thinner than a pixel are widened to one"
    return binarization + (f"; tight crops have a margin of {processor.margin} pixels" if processor.margin else "")
