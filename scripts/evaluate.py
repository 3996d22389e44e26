"""Tell how well a trained Image GPT predicts images: exact likelihoods, and the classes that follow from them.

    python scripts/evaluate.py runs/hoda --data digits.cdb --output report.json              # the test split
    python scripts/evaluate.py runs/hoda --data other.cdb --split all --output report.json   # images never seen

The splits are those of the training run if the data and --seed are. Prints a table and writes a JSON file.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from datasets import DatasetDict, concatenate_datasets
from transformers.utils import logging as transformers_logging

from igpt_hf import DataError, load_splits, tokenize
from igpt_hf.evaluation import labels_as_in_model, likelihood_report, likelihoods
from igpt_hf.loading import load_pretrained
from igpt_hf.training import TokenDataset, use_all_cores


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument(
        "--data", default="synthetic", help="as in train.py: synthetic, a folder, .cdb, parquet, an id"
    )
    parser.add_argument("--split", default="test", choices=["train", "validation", "test", "all"])
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--max_images", type=int, help="evaluate only the first so many of the split")
    parser.add_argument("--prior", default="data", choices=["data", "uniform"], help="p(class): as in train, or equal")
    parser.add_argument("--seed", type=int, default=42, help="of the split")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output", default="report.json")
    return parser.parse_args()


def main():
    args = parse_arguments()
    transformers_logging.disable_progress_bar()
    if not Path(args.output).absolute().parent.is_dir():
        raise DataError(f"the folder of --output {args.output} does not exist.")
    if args.max_images is not None and args.max_images < 1:
        raise DataError(f"--max_images must be at least 1, got {args.max_images}.")
    use_all_cores()
    model, processor = load_pretrained(args.model)
    splits = load_splits(
        args.data,
        seed=args.seed,
        image_column=args.image_column,
        label_column=args.label_column,
        skip_bad_images=args.skip_bad_images,
    )
    index = torch.tensor(labels_as_in_model(splits["train"].features["label"].names, model.config))

    images = concatenate_datasets(list(splits.values())) if args.split == "all" else splits[args.split]
    if args.max_images is not None:
        images = images.select(range(min(args.max_images, len(images))))
    tokens = tokenize(DatasetDict({args.split: images}), processor)[args.split]
    ids = TokenDataset(tokens, model.config, seed=args.seed).__getitems__(range(len(tokens)))["input_ids"]
    labels = index[torch.tensor(tokens["label"][:])]

    counts = torch.bincount(index[torch.tensor(splits["train"]["label"][:])], minlength=model.config.num_labels)
    prior = counts / counts.sum() if args.prior == "data" else torch.full((len(counts),), 1 / len(counts))
    report = {"model": args.model, "data": args.data, "split": args.split, "seed": args.seed, "prior": args.prior}
    report |= likelihood_report(likelihoods(model, ids, args.batch_size), labels, prior, model.config.num_pixels)
    report["nats_per_class"] = {model.config.id2label[label]: nats for label, nats in report["nats_per_class"].items()}
    Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_table(report)
    print(f"-> {args.output}")


def print_table(report: dict):
    """One line per number."""
    print(f"{report['num_images']} images of {report['data']}, {report['split']}")
    for name, meaning in (
        ("nats_per_image", "given the class"),
        ("nats_per_image_marginal", "class unknown (mixture)"),
        ("nats_per_image_unconditional", "start token"),
    ):
        print(f"{meaning:>26}  {report[name]:8.3f} +- {report[name + '_stderr']:.3f} nats/image")
    print(f"{'given the class':>26}  {report['bits_per_pixel']:8.5f} bits/pixel")
    print(f"{'class by Bayes rule':>26}  {report['bayes_accuracy']:8.2%} right")


if __name__ == "__main__":
    try:
        main()
    except (DataError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
