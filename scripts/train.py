"""Train an Image GPT on binary images.

    igpt train                                          # synthetic digits
    igpt train --data digits.cdb --output_dir runs/hoda
    igpt train --data path/to/folder --preset xs --num_train_epochs 30 --report_to tensorboard
    igpt train --config configs/quick.yaml --seed 1
    igpt train --output_dir runs/hoda --data digits.cdb --resume_from_checkpoint true
    igpt train --task classification --model_name_or_path runs/hoda --data digits.cdb
    igpt train --preset stock-xxs --per_device_train_batch_size 8 --max_minutes 60
    igpt train --num_processes 2 -- --data digits.cdb   # before `--`: flags of `accelerate launch`

Looks at the data first, and says in two lines how images become binary. Writes the best model by validation
likelihood, its card, all_results.json, loss_curve.png, samples.png, completions.png and data.png into --output_dir. A
classifier is chosen by validation accuracy and has accuracy_curve.png instead of the figures of samples. `--help`
lists all flags: those of TrainingArguments and IGPTConfig, and a few for data.
"""

import json
import logging
import os
from pathlib import Path


# OpenMP's waiting threads should soon sleep: spinning, they keep the kernels' threads from the cores (a fifth slower
# on two cores). Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

from transformers import set_seed
from transformers.utils import logging as transformers_logging

from igpt_hf.cli import run_main
from igpt_hf.data.inspection import sample_images
from igpt_hf.data.splits import load_splits
from igpt_hf.data.streaming import open_shards, sample_shards, stream_splits
from igpt_hf.data.tokenized import LabelDataset, TokenDataset, tokenize
from igpt_hf.distributed import (
    describe_launch,
    destroy_process_group,
    end_with_launcher,
    launch_warnings,
    on_first_process,
    use_all_cores,
)
from igpt_hf.evaluation.compatibility import seen_images_warning
from igpt_hf.plots import sample_sheet
from igpt_hf.training.arguments import parse_arguments, unused_flags
from igpt_hf.training.callbacks import SampleSheetCallback
from igpt_hf.training.checkpoints import RESULTS, report_last_checkpoint
from igpt_hf.training.initial_model import make_initial_model
from igpt_hf.training.output_dir import delete_overwritten, only_run_in, prepare_output_dir
from igpt_hf.training.preemption import Preempted, SaveOnSigterm
from igpt_hf.training.results import (
    collect_classification_results,
    collect_results,
    write_classification_run,
    write_run,
)
from igpt_hf.training.stopping import finished_message
from igpt_hf.training.trainer import few_steps_hint, make_trainer, push_run


logger = logging.getLogger("train")


def main():
    script_args, model_args, args = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for name in ("igpt_hf", "train"):
        logging.getLogger(name).setLevel(logging.INFO if args.should_log else logging.ERROR)
    transformers_logging.disable_progress_bar()  # one bar for the training, none for each file that is saved
    end_with_launcher()
    with only_run_in(args.output_dir):
        if (message := on_first_process(lambda: finished_message(args))) is None:
            train(script_args, model_args, args)
        else:
            logger.info(message)
            if args.push_to_hub:
                logger.info("pushed: %s", on_first_process(lambda: push_run(args)))


def train(script_args, model_args, args):
    is_classifier = script_args.task == "classification"
    checkpoint = on_first_process(lambda: prepare_output_dir(args))
    num_threads = use_all_cores(script_args.num_threads)
    logger.info(describe_launch(args, num_threads))
    for warning in launch_warnings(args) + unused_flags(script_args, model_args, args):
        logger.warning("warning: %s", warning)

    # 1. Data.
    split_seed = script_args.get_split_seed(args.seed)
    if script_args.streaming:
        source = open_shards(
            script_args.data, script_args.image_column, script_args.label_column, script_args.max_images
        )
        class_names = source.names
    else:
        splits = load_splits(
            script_args.data,
            seed=split_seed,
            image_column=script_args.image_column,
            label_column=script_args.label_column,
            max_images=script_args.max_images,
            skip_bad_images=script_args.skip_bad_images,
        )
        class_names = splits["train"].features["label"].names

    # 2. Model and processor; images -> tokens, once.
    set_seed(args.seed)
    start = make_initial_model(class_names, script_args, model_args)
    model = start.model
    if script_args.model_name_or_path is not None:
        about = (script_args.model_name_or_path, script_args.data, split_seed, script_args.max_images)
        if (warning := seen_images_warning(*about)) is not None:
            logger.warning("warning: %s", warning)
    if script_args.streaming:
        images, num_images = sample_shards(source), None
    else:
        images, num_images = sample_images(splits["train"]), sum(map(len, splits.values()))
    inspection = start.look_at(images, num_images)
    logger.info("%s", inspection.summary)
    for warning in inspection.warnings:
        logger.warning("warning: %s", warning)
    inspection.check()
    processor = start.processor
    if script_args.streaming:
        splits, tokens = stream_splits(
            source,
            processor,
            split_seed,
            script_args.max_eval_images,
            num_workers=num_threads,
            first_shard=len(source.shards) * args.process_index // args.world_size,
            skip_bad_images=script_args.skip_bad_images,
        )
    else:
        tokens = tokenize(splits, processor)

    # 3. Trainer.
    on_first_process(lambda: delete_overwritten(args, checkpoint))
    sheet = SampleSheetCallback(lambda model: sample_sheet(model, processor, per_class=4))
    callbacks = [SaveOnSigterm()] if is_classifier else [sheet, SaveOnSigterm()]
    options = {"layout": start.layout, "shuffle_buffer": script_args.shuffle_buffer}
    trainer = make_trainer(model, args, tokens, start.saved_processor, callbacks=callbacks, **options)
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    about = (script_args.data, sizes, len(class_names), model.num_parameters())
    logger.info("%s: %s images of %d classes; %d parameters", *about)
    if (hint := few_steps_hint(args, len(splits["train"]))) is not None:
        logger.warning("hint: %s", hint)

    # 4. Train, and read the test split once, with the best model.
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Preempted as message:
        return logger.info(message)
    test_split = (LabelDataset if is_classifier else TokenDataset)(tokens["test"], start.layout, seed=args.seed)
    test = trainer.evaluate(test_split, metric_key_prefix="test")
    with report_last_checkpoint("the model", args.output_dir):
        if trainer.is_world_process_zero():  # of a shorter run that was resumed: they are not this model's
            (Path(args.output_dir) / RESULTS).unlink(missing_ok=True)
        trainer.save_model(_internal_call=True)  # which does not push: the card is not there yet
        trainer.save_state()

    # 5. Results, figures, card; then the Hub, with --push_to_hub.
    if trainer.is_world_process_zero():
        inspection.sheet.save(Path(args.output_dir) / "data.png")
        if is_classifier:
            results = collect_classification_results(trainer, test, script_args)
            write_classification_run(trainer, results)
        else:
            results = collect_results(trainer, test, script_args)
            write_run(trainer, processor, splits, results, script_args)
        logger.info("%s: %s", args.output_dir, json.dumps(results, indent=2))
        if args.push_to_hub:
            logger.info("pushed: %s", trainer.push_to_hub())
    trainer.accelerator.wait_for_everyone()  # the others do not leave while the first one still writes


if __name__ == "__main__":
    run_main(main)
    destroy_process_group()
