"""The results of a finished training run: all_results.json, figures and the model card."""

import json
import math
import os
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, set_seed

from .. import __version__
from ..distributed import precision
from ..errors import IGPTError
from ..hub.model_card import hardware, make_classifier_card, make_model_card, versions
from ..plots import accuracy_curve, completion_sheet, loss_curve, parts_sheet, sample_sheet
from .arguments import ScriptArguments
from .callbacks import Stopwatch
from .checkpoints import RESULTS
from .metrics import LossHistory
from .stopping import end_reached


def _about_data(args, script_args: ScriptArguments) -> dict:
    """What the images were and how they were split: what `seen_images_warning` asks for."""
    return {
        "data": script_args.data,
        "model_name_or_path": script_args.model_name_or_path,
        "seed": args.seed,
        "split_seed": script_args.get_split_seed(args.seed),
        "max_images": script_args.max_images,
        "streaming": script_args.streaming,
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


def collect_results(trainer, test: dict[str, float], script_args: ScriptArguments) -> dict:
    """Gather the numbers of a run for all_results.json; nats are per image, exact, given the class.

    Args:
        trainer: After training, with the best model loaded and its state saved.
        test: Metrics of the test split.
        script_args: For the source of the data.
    """
    args, history = trainer.args, LossHistory.from_log(trainer.state.log_history)
    kept = best_evaluation(trainer, history)
    stopwatch = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Stopwatch))
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "train_nats_per_image": history.train[kept],
        "validation_nats_per_image": history.validation[kept],
        "test_nats_per_image": test["test_nats_per_image"],
        "test_nats_per_image_stderr": test["test_nats_per_image_stderr"],
        "test_bits_per_pixel": test["test_bits_per_pixel"],
        "num_parameters": trainer.model.num_parameters(),
        "epochs": trainer.state.epoch,
        "stopped": end_reached(args, trainer.state),
        "best_epoch": history.epochs[kept],
        "train_runtime": stopwatch.seconds,
        "train_images_per_second": trainer.state.global_step * images_per_step / stopwatch.seconds,
        **_about_data(args, script_args),
        "monotonic_train_loss": history.is_monotonic("train"),
        "monotonic_validation_loss": history.is_monotonic("validation"),
    }


def collect_classification_results(trainer, test: dict[str, float], script_args: ScriptArguments) -> dict:
    """Gather the numbers of a classifier's run for all_results.json; nats are per image, from the start token.

    Args:
        trainer: After training, with the best model loaded and its state saved.
        test: Metrics of the test split.
        script_args: For the source of the data and of the first weights.
    """
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
        **_about_data(args, script_args),
    }


def _write_results(results: dict, folder: Path):
    """Write all_results.json, at once and after all else: where it is, the run's files are complete."""
    unfinished = folder / f"{RESULTS}.tmp"
    unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / RESULTS)


def write_classification_run(trainer, results: dict):
    """Write accuracy_curve.png, README.md and all_results.json into the run's folder."""
    folder = Path(trainer.args.output_dir)
    history = LossHistory.from_log(trainer.state.log_history, "accuracy")
    accuracy_curve(history.epochs, history.train, history.validation, results, folder / "accuracy_curve.png")
    rows = [
        (split, results[f"{split}_accuracy"], results[f"{split}_nats_per_image_unconditional"])
        for split in ("train", "validation", "test")
    ]
    facts = {**results, "name": folder.name, "model_id": str(folder), "rows": rows}
    make_classifier_card(facts).save(folder / "README.md")
    _write_results(results, folder)


def write_run(trainer, processor, splits, results: dict, script_args: ScriptArguments):
    """Write loss_curve.png, samples.png, completions.png, README.md and all_results.json into the run's folder.

    Args:
        trainer: After training, with the best model loaded.
        processor: Of the same run.
        splits: The images, before they became tokens; the completions show one test image per class.
        results: From `collect_results`.
        script_args: For the card's account of the data.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    whole = AutoModelForCausalLM.from_pretrained(folder) if trainer.is_fsdp_enabled else trainer.model  # not a part
    model = whole.eval()
    history = LossHistory.from_log(trainer.state.log_history)

    curve = (history.epochs, history.train, history.validation, folder / "loss_curve.png")
    loss_curve(*curve, best=best_evaluation(trainer, history), test=results["test_nats_per_image"])
    set_seed(args.seed)
    sample_sheet(model, processor).save(folder / "samples.png")
    labels = splits["test"]["label"][:]
    shown = splits["test"].select([labels.index(label) for label in sorted(set(labels))][:10])
    complete = completion_sheet if model.config.model_type == "imagegpt" else parts_sheet  # which can only go on
    complete(model, processor, shown["image"][:], shown["label"][:]).save(folder / "completions.png")

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
        "num_images": sum(len(split) for split in splits.values()),
        "splits": split_facts,
        "class_names": ", ".join(config.id2label.values()),
        "num_labels": config.num_labels,
        "image_size": processor.image_size,
        "patch_size": processor.patch_size,
        "num_pixels": num_pixels,
        "protocol": _protocol(processor),
        "vocab_size": config.vocab_size,
        "sequence_length": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_evaluations": len(history.epochs),
        "is_best": best_evaluation(trainer, history) == history.best,
        "optimizer": f"Muon ({args.muon_learning_rate}) and AdamW" if args.use_muon else args.optim.value,
        "learning_rate": args.learning_rate,
        "scheduler": args.lr_scheduler_type.value,
        "warmup_steps": f"{args.warmup_steps:.0%} of the steps" if args.warmup_steps < 1 else args.warmup_steps,
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "weights_kept": f"EMA, decay {args.ema_decay}" if args.ema_decay else "those of the step",
        "class_dropout_prob": trainer.train_dataset.class_dropout_prob,
        "num_train_epochs": f"{trainer.state.num_train_epochs:.4g}",
        "num_steps": trainer.state.global_step,
        "precision": precision(args),
        "hardware": hardware(args.device, args.world_size),
        "versions": versions(),
        "package_version": __version__,
    }


def _protocol(processor) -> str:
    """How images were binarized: likelihoods are comparable only under the same protocol."""
    binarization = {
        "threshold": f"a pixel is white from {processor.threshold} of full gray on",
        "stochastic": "a pixel is white with the probability of its gray level, sampled anew in each epoch, once for "
        "validation and test",
    }[processor.binarize]
    return binarization + (f"; tight crops have a margin of {processor.margin} pixels" if processor.margin else "")
