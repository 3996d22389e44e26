"""Train an Image GPT on binary images.

    igpt train                                          # synthetic digits
    igpt train --data digits.cdb --output_dir runs/hoda
    igpt train --data path/to/folder --preset xs --num_train_epochs 30 --report_to tensorboard
    igpt train --data digits.cdb --augment 0.08 --dataloader_num_workers 1 --dataloader_persistent_workers true
    igpt train --config configs/quick.yaml --seed 1
    igpt train --output_dir runs/hoda --data digits.cdb --resume_from_checkpoint true
    igpt train --task classification --model_name_or_path runs/hoda --data digits.cdb
    igpt train --preset stock-xxs --per_device_train_batch_size 8 --max_minutes 60
    igpt train --num_processes 2 -- --data digits.cdb   # before `--`: flags of `accelerate launch`

Looks at the data first, and says in two lines how images become binary. Writes the best model by validation
likelihood, its card, all_results.json, loss_curve.png, samples.png, completions.png and data.png into --output_dir. A
classifier is chosen by validation accuracy and has accuracy_curve.png instead of the figures of samples.
"""

import logging
import os
from pathlib import Path


# OpenMP's waiting threads should soon sleep: spinning, they keep the kernels' threads from the cores (a fifth slower
# on two cores). Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import torch
from transformers import set_seed

from igpt_hf.cli import hide_library_bars, run_main
from igpt_hf.data.augmentation import NewImages, default_strength
from igpt_hf.data.inspection import Inspection, sample_images
from igpt_hf.data.shards import open_shards
from igpt_hf.data.splits import describe_splits, load_splits
from igpt_hf.data.streaming import sample_shards, stream_splits
from igpt_hf.data.tokenized import LabelDataset, TokenDataset, tokenize
from igpt_hf.distributed import (
    describe_launch,
    destroy_process_group,
    end_with_launcher,
    launch_warnings,
    on_first_process,
    use_all_cores,
)
from igpt_hf.errors import IGPTError
from igpt_hf.evaluation.compatibility import seen_images_warning
from igpt_hf.plots import sample_sheet
from igpt_hf.training.arguments import parse_arguments, unused_flags
from igpt_hf.training.callbacks import AfterFirstStep, SampleSheetCallback
from igpt_hf.training.checkpoints import report_last_checkpoint
from igpt_hf.training.file_names import RESULTS
from igpt_hf.training.initial_model import InitialModel, check_model_flags, make_initial_model
from igpt_hf.training.output_dir import delete_overwritten, only_run_in, overwritten_files, prepare_output_dir
from igpt_hf.training.preemption import Preempted, SaveOnSigterm
from igpt_hf.training.results import format_results, keep_nats_quantiles, next_command, write_run
from igpt_hf.training.run_settings import run_settings
from igpt_hf.training.stopping import finished_message, interrupted_message
from igpt_hf.training.trainer import few_steps_hint, make_trainer, push_run


logger = logging.getLogger("train")


def main():
    script_args, model_args, args = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for name in ("igpt_hf", "train"):
        logging.getLogger(name).setLevel(logging.INFO if args.should_log else logging.ERROR)
    hide_library_bars()
    end_with_launcher()
    with only_run_in(args.output_dir):
        if (message := on_first_process(lambda: finished_message(args))) is None:
            train(script_args, model_args, args)
        else:
            logger.info(message)
            if args.push_to_hub:
                logger.info("pushed: %s", on_first_process(lambda: push_run(args)))


def train(script_args, model_args, args):
    settings = run_settings(script_args, model_args, args)
    checkpoint = on_first_process(lambda: prepare_output_dir(args, settings))
    logger.info(describe_launch(args, use_all_cores(script_args.num_threads)))
    for warning in launch_warnings(args) + unused_flags(script_args, model_args, args):
        logger.warning("warning: %s", warning)

    # 1. Data.
    check_model_flags(script_args, model_args)
    split_seed = script_args.get_split_seed(args.seed)
    images, class_names = open_images(script_args, split_seed)

    # 2. Model and processor; images -> tokens, once.
    set_seed(args.seed)
    start = make_initial_model(class_names, script_args, model_args)
    if (name := script_args.model_name_or_path) is not None:
        about = (name, script_args.data, split_seed, script_args.max_images, images.given)
        if (warning := seen_images_warning(*about)) is not None:
            logger.warning("warning: %s", warning)
    inspection = look_at(images, start, script_args.streaming)
    script_args.augment = choose_augmentation(images, start.processor, script_args)
    splits, tokens = make_tokens(images, start.processor, script_args, split_seed, args)
    batch, count = args.train_batch_size * args.world_size, len(splits["train"])
    if args.dataloader_drop_last and count < batch:
        raise IGPTError(f"--dataloader_drop_last leaves nothing of {count} training images in batches of {batch}.")

    # 3. Trainer.
    trainer = wire_trainer(start, tokens, splits["train"], script_args, args)
    trainer.run_settings = settings
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    logger.info("%s images; splits: %s", sizes, describe_splits(images.given, split_seed, script_args.streaming))
    logger.info("%d classes; %d parameters", len(class_names), start.model.num_parameters())
    if (hint := few_steps_hint(args, len(splits["train"]))) is not None:
        logger.warning("hint: %s", hint)

    overwritten = overwritten_files(args, checkpoint)

    def begin_folder():
        delete_overwritten(args, overwritten)
        inspection.sheet.save(Path(args.output_dir) / "data.png", script_args.figures)

    trainer.add_callback(AfterFirstStep(lambda: on_first_process(begin_folder)))

    # 4. Train, and read the test split once, with the best model.
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Preempted as message:
        return logger.info(message)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted_message(trainer)) from None
    dataset = LabelDataset if script_args.task == "classification" else TokenDataset
    test_split = dataset(tokens["test"], start.layout, seed=split_seed)  # the pixels that evaluate.py would draw
    test = trainer.evaluate(test_split, metric_key_prefix="test")

    # 5. Model, results, figures, card; then the Hub, with --push_to_hub.
    save_model(trainer)
    if trainer.is_world_process_zero():
        results = write_run(trainer, test, start.processor, splits, script_args, given=images.given)
        logger.info("%s", format_results(results, args.output_dir, next_command(trainer, script_args)))
        if args.push_to_hub:
            logger.info("pushed: %s", trainer.push_to_hub())
    trainer.accelerator.wait_for_everyone()  # the others do not leave while the first one still writes


def open_images(script_args, split_seed: int):
    """Open the images of --data: the three splits or, with --streaming, the shards; and the names of the classes."""
    names = ["image_column", "label_column", "max_images"]
    if script_args.streaming:
        options = {name: getattr(script_args, name) for name in names}
        shards = open_shards(script_args.data, split_rule=script_args.splits, **options)
        return shards, shards.names
    names += ["splits", "labels_from", "skip_bad_images"]
    splits = load_splits(script_args.data, seed=split_seed, **{name: getattr(script_args, name) for name in names})
    return splits, splits["train"].features["label"].names


def look_at(images, start: InitialModel, is_streamed: bool) -> Inspection:
    """Decide, by a sample of the training images, how images become binary, and say so."""
    if is_streamed:
        sample, num_images = sample_shards(images), None
    else:
        sample, num_images = sample_images(images["train"]), sum(map(len, images.values()))
    inspection = start.look_at(sample, num_images)
    inspection.report(logger.info, logger.warning)
    inspection.check()
    return inspection


def choose_augmentation(images, processor, script_args) -> float:
    """The strength of the augmentation: what was asked for, or else what suits the images, which is said."""
    if script_args.augment is not None:
        return script_args.augment
    if script_args.streaming or script_args.draws_digits or script_args.task == "classification":
        return 0.0
    strength = default_strength(images["train"], processor)
    if strength > 0:
        logger.info("crops: their training images are transformed a little in each epoch (--augment %g)", strength)
    return strength


def make_tokens(images, processor, script_args, split_seed: int, args):
    """Tokenize what `open_images` opened: the splits of images, and those of tokens."""
    if not script_args.streaming:
        return images, tokenize(images, processor)
    return stream_splits(
        images,
        processor,
        split_seed,
        script_args.max_eval_images,
        num_workers=torch.get_num_threads(),
        first_shard=len(images.shards) * args.process_index // args.world_size,
        skip_bad_images=script_args.skip_bad_images,
    )


def wire_trainer(start: InitialModel, tokens, train_images, script_args, args):
    """Make the Trainer, with the callbacks that a command line's run has."""
    callbacks: list = [SaveOnSigterm()]
    if script_args.task == "generation":
        callbacks.append(SampleSheetCallback(lambda model: sample_sheet(model, start.processor, per_class=4)))
    options = {"layout": start.layout, "shuffle_buffer": script_args.shuffle_buffer}
    options["new_images"] = new_images(train_images, start.processor, script_args, args)
    options["evaluation_seed"] = script_args.get_split_seed(args.seed)
    return make_trainer(start.model, args, tokens, start.saved_processor, callbacks=callbacks, **options)


def new_images(split, processor, script_args, args) -> NewImages | None:
    """What makes training images that are new in each epoch; None where they stay the same."""
    if not (script_args.draws_digits or script_args.augment > 0):
        return None
    num_epochs = args.num_train_epochs
    if args.max_steps != -1:
        num_epochs = args.max_steps * args.images_per_step / len(split)
    strength, fade_from = script_args.augment, script_args.augment_fade_from
    return NewImages(split, processor, args.seed, script_args.draws_digits, strength, num_epochs, fade_from)


def save_model(trainer):
    """Save the best model and the state of the run."""
    folder = trainer.args.output_dir
    keep_nats_quantiles(trainer)
    with report_last_checkpoint("the model", folder):
        if trainer.is_world_process_zero():  # of a shorter run that was resumed: they are not this model's
            (Path(folder) / RESULTS).unlink(missing_ok=True)
        trainer.save_model(_internal_call=True)  # which does not push: the card is not there yet
        trainer.save_state()


if __name__ == "__main__":
    run_main(main)
    destroy_process_group()
