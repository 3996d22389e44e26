"""Train an Image GPT on binary images.

    accelerate launch scripts/train.py                                          # digits drawn by the package
    accelerate launch scripts/train.py --data digits.cdb --output_dir runs/hoda
    accelerate launch scripts/train.py --data path/to/folder --preset xs --num_train_epochs 30 --report_to tensorboard
    accelerate launch scripts/train.py --config configs/quick.yaml --seed 1
    accelerate launch scripts/train.py --output_dir runs/hoda --data digits.cdb --resume_from_checkpoint true

Writes the best model by validation likelihood, its card, all_results.json, loss_curve.png, samples.png and
completions.png into --output_dir. `--help` lists all flags: those of TrainingArguments and IGPTConfig, and a few for
data.
"""

import json
import logging
import os
import sys


# OpenMP's waiting threads should soon sleep: spinning, they keep the attention kernel's threads from the cores (a
# fifth slower on two cores). Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor
from igpt_hf.checkpoints import Preempted, SaveOnSigterm, prepare_output_dir
from igpt_hf.data import load_splits, tokenize
from igpt_hf.launching import describe_launch, end_with_launcher, launch_warnings, on_first_process
from igpt_hf.plots import sample_sheet
from igpt_hf.reporting import collect_results, write_run
from igpt_hf.streaming import open_shards, stream_splits
from igpt_hf.training import (
    SampleSheetCallback,
    TokenDataset,
    make_trainer,
    parse_arguments,
    use_all_cores,
)


logger = logging.getLogger("train")


def main():
    data_args, config_args, args = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for name in ("igpt_hf", "train"):
        logging.getLogger(name).setLevel(logging.INFO if args.should_log else logging.ERROR)
    transformers_logging.disable_progress_bar()  # one bar for the training, none for each file that is saved
    end_with_launcher()
    checkpoint = on_first_process(lambda: prepare_output_dir(args))
    num_threads = use_all_cores(data_args.num_threads)
    logger.info(describe_launch(args, num_threads))
    for warning in launch_warnings(args):
        logger.warning("warning: %s", warning)

    # 1. Data: pictures -> tokens, once.
    if data_args.streaming:
        source = open_shards(data_args.data, data_args.image_column, data_args.label_column, data_args.max_images)
        names = source.names
    else:
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
        margin=config.image_size // 14 if data_args.margin is None else data_args.margin,
        binarize=data_args.binarize,
    )
    if data_args.streaming:
        splits, tokens = stream_splits(
            *(source, processor, args.seed, data_args.max_eval_images),
            num_workers=num_threads,
            first_shard=len(source.shards) * args.process_index // args.world_size,
            skip_bad_images=data_args.skip_bad_images,
        )
    else:
        tokens = tokenize(splits, processor)

    # 2. Model and trainer.
    set_seed(args.seed)
    model = IGPTForCausalImageModeling(config)
    sheet = SampleSheetCallback(lambda model: sample_sheet(model, processor, per_class=4))
    callbacks = [sheet, SaveOnSigterm()]
    trainer = make_trainer(model, args, tokens, processor, callbacks, shuffle_buffer=data_args.shuffle_buffer)
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    logger.info(
        "%s: %s images of %d classes; %d parameters", data_args.data, sizes, len(names), model.num_parameters()
    )

    # 3. Train, and read the test split once, with the best model.
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Preempted as message:
        logger.info(message)
        return trainer.accelerator.end_training()
    test_split = TokenDataset(tokens["test"], config, seed=args.seed)
    test = trainer.evaluate(test_split, metric_key_prefix="test")
    trainer.save_model()
    trainer.save_state()

    # 4. Results, pictures, card.
    if trainer.is_world_process_zero():
        results = collect_results(trainer, test, data_args.data)
        write_run(trainer, processor, splits, results, data_args)
        logger.info("%s: %s", args.output_dir, json.dumps(results, indent=2))
    trainer.accelerator.wait_for_everyone()  # the others do not leave while the first one still writes
    trainer.accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, StrictDataclassError, FloatingPointError, OSError) as error:  # DataError is a ValueError
        sys.exit(f"error: {error}")
