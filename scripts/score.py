"""Score image files with a trained Image GPT: how likely, of which class, how typical of the training data.

    igpt score runs/hoda scan-1.png scan-2.png
    igpt score runs/hoda scans/ --output scores.csv     # every image in the folder

Prints and writes, for each file: `nats`, -ln p(image) with the class unknown, exact; `bits_per_pixel`; `label`, the
most likely class, and its posterior probability by Bayes' rule, all classes equally likely; `percentile`, the
percentage of the model's validation images with fewer nats. A percentile near 100 is unlike anything in the training
data; one near 0 is simpler than all of it.
"""

import csv
import math
from pathlib import Path

import torch
from PIL import Image

from igpt_hf import DataError
from igpt_hf.cli import check_output, check_positive, command_parser, hide_library_bars, run_main
from igpt_hf.evaluation.likelihood import log_likelihoods
from igpt_hf.evaluation.typicality import marginal_nats, percentiles
from igpt_hf.hub.loading import load_pretrained


COLUMNS = ("file", "nats", "bits_per_pixel", "label", "posterior", "percentile")


def parse_arguments():
    parser = command_parser("score", __doc__)
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument("images", nargs="+", type=Path, help="image files, and folders of them")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output", default="scores.csv", help="the table as CSV")
    args = parser.parse_args()
    check_positive(args, "batch_size")
    check_output(args.output)
    return args


def find_images(paths: list[Path]) -> list[Path]:
    """The files, with each folder replaced by the image files in it and below it.

    Raises:
        DataError: A path does not exist, or a folder holds no images.
    """
    suffixes, files = Image.registered_extensions(), []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist.")
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
        if path.is_dir() and not inside:
            raise DataError(f"{path} holds no images.")
        files += inside if path.is_dir() else [path]
    return files


def read_images(files: list[Path], processor) -> torch.Tensor:
    """Token ids of image files, with the start token as prompt: (n, 1 + N).

    Raises:
        DataError: A file that is not an image; the message names it.
    """
    rows = []
    for file in files:
        try:
            rows.append(processor(file)["input_ids"])
        except (ValueError, OSError) as error:
            raise DataError(f"{file}: {error}") from error
    return torch.cat(rows)


def main():
    args = parse_arguments()
    hide_library_bars()
    model, processor = load_pretrained(args.model)
    files = find_images(args.images)
    scores = log_likelihoods(model, read_images(files, processor), args.batch_size)
    nats, posterior = marginal_nats(scores), scores["classes"].softmax(dim=1)
    quantiles = model.config.nats_quantiles
    ranks = [math.nan] * len(files) if quantiles is None else percentiles(nats, quantiles)

    with open(args.output, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for file, value, classes, rank in zip(files, nats.tolist(), posterior, ranks, strict=True):
            best = classes.argmax().item()
            bits = value / (model.config.num_pixels * math.log(2))
            name, probability = model.config.class_names[best], classes[best].item()
            writer.writerow([file, f"{value:.3f}", f"{bits:.5f}", name, f"{probability:.4f}", f"{rank:.1f}"])
            print(f"{file}: {value:.2f} nats, {name} ({probability:.1%}), percentile {rank:.0f}")
    print(f"{len(files)} images -> {args.output}")


if __name__ == "__main__":
    run_main(main)
