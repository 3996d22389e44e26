"""Score image files with a trained Image GPT: how likely, of which class, how typical of the training data.

    igpt score runs/hoda scan-1.png scan-2.png
    igpt score runs/hoda scans/ --output scores.csv     # every image in the folder

An image that is not like the training data, such as a scan of the other polarity or a photograph, is read by itself,
and the table says so.

Prints and writes, for each file: `nats`, -ln p(image) with the class unknown, exact; `bits_per_pixel`; `label`, the
most likely class, and its posterior probability by Bayes' rule, all classes equally likely; `percentile`, the
percentage of the model's validation images with fewer nats. A percentile near 100 is unlike anything in the training
data; one near 0 is simpler than all of it. `read`: "as data" or "by itself".
"""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from igpt_hf import DataError
from igpt_hf.cli import (
    add_model_argument,
    check_output,
    check_positive,
    command_parser,
    hide_library_bars,
    run_main,
)
from igpt_hf.data.sources.folder import IMAGE_SUFFIXES, visible_files
from igpt_hf.evaluation.likelihood import log_likelihoods
from igpt_hf.evaluation.typicality import marginal_nats, percentiles
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.model.image_upload import like_data


COLUMNS = ("file", "nats", "bits_per_pixel", "label", "posterior", "percentile", "read")


def parse_arguments():
    parser = command_parser("score", __doc__)
    add_model_argument(parser, is_optional=False)
    parser.add_argument("images", nargs="+", type=Path, help="image files, and folders of them")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out files that cannot be read")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output", default="scores.csv", help="the table as CSV")
    args = parser.parse_args()
    check_positive(args, "batch_size")
    check_output(args.output)
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


def read_file(file: Path, processor) -> tuple[torch.Tensor, str]:
    """Tokens of an image file, (1, N), and whether it was read "as data" or "by itself".

    Raises:
        DataError: It is no image, has several frames, or nothing is left of it; the message names it.
    """
    try:
        with Image.open(file) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"it has {frames} frames: save each as a file.")
            seen = like_data(processor, image)
            tokens = processor.tokenize(seen, np.random.default_rng(0))  # the same pixels of gray images each time
            return torch.from_numpy(tokens.astype(np.int64)), "as data" if seen is image else "by itself"
    except UnidentifiedImageError as error:
        raise DataError(
            f"{file} is not an image file. Score takes these and folders of them; igpt evaluate and igpt compress "
            "take arrays, tables and archives."
        ) from error
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: {error}") from error


def read_files(files: list[Path], processor, skip_bad_images: bool) -> list[tuple[Path, torch.Tensor, str]]:
    """Each file with what `read_file` makes of it.

    Raises:
        DataError: The first file that cannot be read; with `skip_bad_images`, if none can.
    """
    read: list[tuple[Path, torch.Tensor, str]] = []
    for file in tqdm(files, desc="Reading", unit=" images", delay=2, disable=None):
        try:
            read.append((file, *read_file(file, processor)))
        except DataError as error:
            if not skip_bad_images or (file == files[-1] and not read):
                raise DataError(f"{error} --skip_bad_images leaves out such files.") from error
            print(f"skipped: {error}", file=sys.stderr)
    return read


def main():
    args = parse_arguments()
    hide_library_bars()
    model, processor = load_pretrained(args.model)
    read = read_files(find_images(args.images), processor, args.skip_bad_images)
    tokens = torch.cat([tokens for _, tokens, _ in read])
    prompts = torch.full((len(tokens), 1), model.config.start_token_id)
    scores = log_likelihoods(model, torch.cat([prompts, tokens], dim=1), args.batch_size)
    nats, posterior = marginal_nats(scores), scores["classes"].softmax(dim=1)
    quantiles = model.config.nats_quantiles
    ranks = [math.nan] * len(read) if quantiles is None else percentiles(nats, quantiles)

    with open(args.output, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for (file, _, how), value, classes, rank in zip(read, nats.tolist(), posterior, ranks, strict=True):
            best = classes.argmax().item()
            bits = value / (model.config.num_pixels * math.log(2))
            name, probability = model.config.class_names[best], classes[best].item()
            writer.writerow([file, f"{value:.3f}", f"{bits:.5f}", name, f"{probability:.4f}", f"{rank:.1f}", how])
            note = "" if how == "as data" else ", read by itself"
            print(f"{file}: {value:.2f} nats, {name} ({probability:.1%}), percentile {rank:.0f}{note}")
    print(f"{len(read)} images -> {args.output}")


if __name__ == "__main__":
    run_main(main)
