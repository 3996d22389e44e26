"""Score image files with a trained Image GPT: how likely, of which class, how typical of the training data.

    igpt score runs/hoda scan-1.png scan-2.png
    igpt score runs/hoda scans/ --output scores.csv     # every image in the folder

An image that is not like the training data, such as a scan of the other polarity or a photograph, is read by itself:
how, is decided from this image alone, and the table says so.

Prints and writes, for each file: `nats`, -ln p(image) with the class unknown, exact; `bits_per_pixel`; `label`, the
most likely class, and its posterior probability by Bayes' rule, all classes equally likely; `percentile`, the
percentage of the model's validation images with fewer nats. A percentile near 100 is unlike anything in the training
data; one near 0 is simpler than all of it. `read`: "as data" or "by itself".
"""

import csv
import math
import os
from pathlib import Path

import torch

from igpt_hf import DataError
from igpt_hf.cli import (
    add_model_argument,
    check_output,
    check_positive,
    command_parser,
    hide_library_bars,
    run_main,
)
from igpt_hf.data.image_files import read_image_files
from igpt_hf.data.sources.folder import IMAGE_SUFFIXES, visible_files
from igpt_hf.evaluation.likelihood import log_likelihoods
from igpt_hf.evaluation.typicality import marginal_nats, percentiles
from igpt_hf.hub.loading import load_pretrained


COLUMNS = ("file", "nats", "bits_per_pixel", "label", "posterior", "percentile", "read")


def parse_arguments():
    parser = command_parser("score", __doc__)
    add_model_argument(parser, is_optional=False)
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out files that cannot be read")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output", default="scores.csv", help="the table as CSV")
    args = parser.parse_args()
    if "" in args.images:  # pathlib would take it for this folder
        raise DataError("'' does not exist: the name of an image or a folder is empty.")
    args.images = [Path(name) for name in args.images]
    check_positive(args, "batch_size")
    check_output(args.output, suffixes=(".csv", ".tsv", ".txt", ""), reads=args.images)
    return args


def find_images(paths: list[Path]) -> list[Path]:
    """The files, with each folder replaced by the image files in it and below it, without hidden ones.

    Raises:
        DataError: A path does not exist, or a folder holds no images.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist.")
        inside = visible_files(path, IMAGE_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} holds no images.")
        files += inside
    return files


def main():
    args = parse_arguments()
    hide_library_bars()
    model, processor = load_pretrained(args.model)
    files = find_images(args.images)
    read = read_image_files(files, processor, args.skip_bad_images)
    if not read:
        raise DataError(f"none of the {len(files)} files can be read, for the reasons above.")
    tokens = torch.stack([file.tokens for file in read])
    prompts = torch.full((len(tokens), 1), model.config.start_token_id)
    scores = log_likelihoods(model, torch.cat([prompts, tokens], dim=1), args.batch_size)
    nats, posterior = marginal_nats(scores), scores["classes"].softmax(dim=1)
    quantiles = model.config.nats_quantiles
    ranks = [math.nan] * len(read) if quantiles is None else percentiles(nats, quantiles)

    with open(args.output, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for file, value, classes, rank in zip(read, nats.tolist(), posterior, ranks, strict=True):
            best = classes.argmax().item()
            bits = value / (model.config.num_pixels * math.log(2))
            name, probability = model.config.class_names[best], classes[best].item()
            how = "as data" if file.is_like_data else "by itself"
            numbers = [f"{value:.3f}", f"{bits:.5f}", name, f"{probability:.4f}", f"{rank:.1f}"]
            path = os.fsencode(file.path).decode("utf-8", "backslashreplace")  # a name may be of another encoding
            writer.writerow([path, *numbers, how])
            note = "" if file.is_like_data else ", read by itself"
            print(f"{path}: {value:.2f} nats, {name} ({probability:.1%}), percentile {rank:.0f}{note}")
    print(f"{len(read)} images -> {args.output}")


if __name__ == "__main__":
    run_main(main)
