"""What a finished training run leaves behind: all_results.json, pictures and the model card."""

import json
import math
from pathlib import Path

from transformers import set_seed

from .model_card import hardware, make_model_card, versions
from .plots import completion_sheet, loss_curve, sample_sheet
from .training import DataArguments, LossHistory, Stopwatch


def collect_results(trainer, test: dict[str, float], data: str) -> dict:
    """Gather the numbers of a run for all_results.json; nats are per image, exact, given the class.

    Args:
        trainer: After training, with the best model loaded.
        test: Metrics of the test split.
        data: The source, as it was given.
    """
    args, history = trainer.args, LossHistory.from_log(trainer.state.log_history)
    stopwatch = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Stopwatch))
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "train_nats_per_image": history.train[history.best],
        "validation_nats_per_image": history.validation[history.best],
        "test_nats_per_image": test["test_nats_per_image"],
        "test_nats_per_image_stderr": test["test_nats_per_image_stderr"],
        "test_bits_per_pixel": test["test_bits_per_pixel"],
        "num_parameters": trainer.model.num_parameters(),
        "epochs": trainer.state.epoch,
        "best_epoch": history.epochs[history.best],
        "train_runtime": stopwatch.seconds,
        "train_images_per_second": trainer.state.global_step * images_per_step / stopwatch.seconds,
        "data": data,
        "seed": args.seed,
        "monotonic_train_loss": history.is_monotonic("train"),
        "monotonic_validation_loss": history.is_monotonic("validation"),
    }


def write_run(trainer, processor, splits, results: dict, data_args: DataArguments):
    """Write all_results.json, loss_curve.png, samples.png, completions.png and README.md into the run's folder.

    Args:
        trainer: After training, with the best model loaded.
        processor: Of the same run.
        splits: The pictures, before they became tokens; the completions show one test image per class.
        results: From `collect_results`.
        data_args: For the card's account of the data.
    """
    args, model, folder = trainer.args, trainer.model.eval(), Path(trainer.args.output_dir)
    history = LossHistory.from_log(trainer.state.log_history)
    (folder / "all_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    curve = (history.epochs, history.train, history.validation, folder / "loss_curve.png")
    loss_curve(*curve, best=history.best, test=results["test_nats_per_image"])
    set_seed(args.seed)
    sample_sheet(model, processor).save(folder / "samples.png")
    labels = splits["test"]["label"][:]
    shown = splits["test"].select([labels.index(label) for label in sorted(set(labels))][:10])
    completion_sheet(model, processor, shown["image"][:], shown["label"][:]).save(folder / "completions.png")

    make_model_card(_card_facts(trainer, processor, splits, results, data_args, history)).save(folder / "README.md")


def _card_facts(trainer, processor, splits, results: dict, data_args: DataArguments, history: LossHistory) -> dict:
    args, config = trainer.args, trainer.model.config
    split_facts = []
    for name, split in splits.items():
        nats = results[f"{name}_nats_per_image"]
        bits = nats / (processor.image_size**2 * math.log(2))
        # The nats of the training split are those of the part that is evaluated beside the validation split.
        measured = len(trainer.eval_dataset["train"]) if name == "train" else len(split)
        facts = {"name": name, "num_images": len(split), "num_measured": measured, "nats": nats, "bits": bits}
        split_facts.append(facts)
    return {
        **results,
        "name": Path(args.output_dir).name,
        "model_id": args.output_dir,
        "image_size": processor.image_size,
        "patch_size": processor.patch_size,
        "num_pixels": processor.image_size**2,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_labels": config.num_labels,
        "sequence_length": config.max_position_embeddings,
        "class_names": ", ".join(config.id2label.values()),
        "protocol": f"binarised by {data_args.binarize}"
        + (f" at {data_args.threshold} of full grey" if data_args.binarize == "threshold" else "")
        + (f"; tight crops have a margin of {processor.margin} pixels" if processor.margin else ""),
        "splits": split_facts,
        "num_evaluations": len(history.epochs),
        "optimizer": f"Muon ({args.muon_learning_rate}) and AdamW" if args.use_muon else str(args.optim),
        "learning_rate": args.learning_rate,
        "scheduler": args.lr_scheduler_type.value,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "hardware": hardware(),
        "versions": versions(),
    }


__all__ = ["collect_results", "write_run"]
