"""Train an Image GPT on binary images.

    accelerate launch scripts/train.py                                          # digits drawn by the package
    accelerate launch scripts/train.py --data digits.cdb --output_dir runs/hoda
    accelerate launch scripts/train.py --data path/to/folder --preset xs --num_train_epochs 30 --report_to tensorboard
    accelerate launch scripts/train.py --config configs/quick.yaml --seed 1
    accelerate launch scripts/train.py --output_dir runs/hoda --data digits.cdb --resume_from_checkpoint true

Writes the best model by validation likelihood, its card, all_results.json, loss_curve.png, samples.png and
completions.png into --output_dir. `--help` lists all flags: those of TrainingArguments and IGPTConfig, and a few for data.
"""

import json
import logging
import sys
from pathlib import Path

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from igpt_hf import DataError, IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor
from igpt_hf.data import load_splits, tokenize
from igpt_hf.model_card import hardware, make_model_card, versions
from igpt_hf.plots import completion_sheet, loss_curve, sample_sheet
from igpt_hf.training import (
    LossHistory,
    SampleSheetCallback,
    TokenDataset,
    make_trainer,
    parse_arguments,
    prepare_output_dir,
    use_all_cores,
)


logger = logging.getLogger("train")


def main():
    data_args, config_args, args = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for name in ("igpt_hf", "train"):
        logging.getLogger(name).setLevel(logging.INFO if args.should_log else logging.ERROR)
    transformers_logging.disable_progress_bar()  # one bar for the training, none for each file that is saved
    checkpoint = prepare_output_dir(args)
    logger.info(
        "%d process(es) on %s, %d CPU thread(s) each, precision %s",
        *(args.world_size, args.device, use_all_cores(data_args.num_threads)),
        "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
    )

    # 1. Data: pictures -> tokens, once.
    splits = load_splits(
        data_args.data,
        seed=args.seed,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        max_images=data_args.max_images,
        skip_bad_images=data_args.skip_bad_images,
    )
    names = splits["train"].features["label"].names
    overrides = {name: value for name, value in vars(config_args).items() if name != "preset" and value is not None}
    config = IGPTConfig.from_preset(
        config_args.preset, **overrides, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    processor = IGPTImageProcessor(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_labels=config.num_labels,
        threshold=data_args.threshold,
        invert=data_args.invert,
        binarize=data_args.binarize,
    )
    tokens = tokenize(splits, processor)

    # 2. Model and trainer.
    set_seed(args.seed)
    model = IGPTForCausalImageModeling(config)
    sheet = SampleSheetCallback(lambda model: sample_sheet(model, processor, per_class=4))
    trainer = make_trainer(model, args, tokens, processor, callbacks=[sheet])
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    logger.info("%s: %s images of %d classes; %d parameters", data_args.data, sizes, len(names), model.num_parameters())

    # 3. Train, and read the test split once, with the best model.
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    test = trainer.evaluate(TokenDataset(tokens["test"], config), metric_key_prefix="test")
    history = LossHistory.from_log(trainer.state.log_history)
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return

    # 4. Results, pictures, card.
    steps = trainer.state.global_step - (int(checkpoint.split("-")[-1]) if checkpoint else 0)
    images = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    results = {
        "train_nats_per_image": history.train[history.best],
        "validation_nats_per_image": history.validation[history.best],
        "test_nats_per_image": test["test_nats_per_image"],
        "test_nats_per_image_stderr": test["test_nats_per_image_stderr"],
        "test_bits_per_pixel": test["test_bits_per_pixel"],
        "num_parameters": model.num_parameters(),
        "epochs": trainer.state.epoch,
        "best_epoch": history.epochs[history.best],
        "train_runtime": trained.metrics["train_runtime"],
        "train_images_per_second": images / trained.metrics["train_runtime"],
        "data": data_args.data,
        "seed": args.seed,
        "monotonic_train_loss": history.is_monotonic("train"),
        "monotonic_validation_loss": history.is_monotonic("validation"),
    }
    output_dir = Path(args.output_dir)
    (output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    loss_curve(
        *(history.epochs, history.train, history.validation, output_dir / "loss_curve.png"),
        best=history.best,
        test=results["test_nats_per_image"],
    )
    set_seed(args.seed)
    model.eval()
    sample_sheet(model, processor).save(output_dir / "samples.png")
    firsts = [splits["test"]["label"].index(label) for label in sorted(set(splits["test"]["label"]))][:10]
    shown = splits["test"].select(firsts)
    completion_sheet(model, processor, shown["image"][:], shown["label"][:]).save(output_dir / "completions.png")
    protocol = f"binarised by {data_args.binarize} ({data_args.threshold}), 85/10/5 split with seed {args.seed}"
    nats = [results[f"{name}_nats_per_image"] for name in ("train", "validation", "test")]
    per_bit = config.num_pixels * 0.6931471805599453
    make_model_card(
        {
            **config.to_dict(),
            **results,
            "name": output_dir.name,
            "model_id": str(output_dir),
            "vocab_size": config.vocab_size,
            "num_pixels": config.num_pixels,
            "num_labels": config.num_labels,
            "sequence_length": config.max_position_embeddings,
            "class_names": ", ".join(names),
            "protocol": protocol,
            "splits": [
                {"name": name, "num_images": len(splits[name]), "nats": value, "bits": value / per_bit}
                for name, value in zip(splits, nats, strict=True)
            ],
            "num_evaluations": len(history.epochs),
            "optimizer": f"Muon ({args.muon_learning_rate}) and AdamW" if args.use_muon else args.optim,
            "learning_rate": args.learning_rate,
            "scheduler": args.lr_scheduler_type.value,
            "batch_size": images // steps,
            "train_minutes": round(results["train_runtime"] / 60, 1),
            "images_per_second": round(results["train_images_per_second"]),
            "hardware": hardware(),
            "versions": versions(),
        }
    ).save(output_dir / "README.md")
    logger.info(json.dumps(results, indent=2))


if __name__ == "__main__":
    try:
        main()
    except (DataError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
