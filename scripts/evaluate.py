"""Tell how well a trained Image GPT predicts, classifies and draws images: exact likelihoods, codes, samples.

    igpt evaluate runs/hoda --data digits.cdb --output report.json                  # the test split
    igpt evaluate runs/hoda --data digits.cdb --samples 1000 --output report.json   # and its samples
    igpt evaluate runs/hoda --data other.cdb --split all --output report.json       # images never seen

The splits are those of the training run if the data and --seed are, and the run had all images (no --max_images, no
--streaming); otherwise a warning says so. Prints a table, writes a JSON file and, beside it,
a picture of the same name: calibration, nats per class, confusion, codecs, the hardest and easiest images with what
surprised the model in them, and with --samples some beside the training images nearest to them. Where the data has one
class only, what needs classes is null.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path


# OpenMP's waiting threads should soon sleep: spinning, they keep the kernels' threads from the cores. Read
# once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import numpy as np
import torch
from datasets import DatasetDict
from transformers.utils import logging as transformers_logging

from igpt_hf import IGPTError, load_splits, tokenize
from igpt_hf.data.tokenized import TokenDataset
from igpt_hf.distributed import use_all_cores
from igpt_hf.evaluation.codecs import codec_bits
from igpt_hf.evaluation.compatibility import check_data, seen_images_warning, was_trained_on
from igpt_hf.evaluation.likelihood import likelihood_report, log_likelihoods
from igpt_hf.evaluation.surprise import calibration, surprise_maps
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.plots import SHOWN, evaluation_picture


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="igpt evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument(
        "--data", default="synthetic", help="as in train.py: synthetic, a folder, .cdb, parquet, an id"
    )
    parser.add_argument("--split", default="test", choices=["train", "validation", "test", "all"])
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--resize", action="store_true", help="fit pictures of another size than the model's to it")
    parser.add_argument("--max_images", type=int, help="evaluate only the first so many of the split")
    parser.add_argument("--samples", type=int, help="draw so many images and compare them with the real ones")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples; 1: the model's distribution")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="of the samples; above 1: more of a class")
    parser.add_argument("--prior", default="data", choices=["data", "uniform"], help="p(class): as in train, or equal")
    parser.add_argument(
        "--seed",
        type=int,
        default=42,
        help="of the split (the training run's --split_seed, or its --seed), the samples and the classifiers",
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output", default="report.json", help="the picture is written beside it, as .png")
    args = parser.parse_args()
    for name in ("max_images", "samples", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise IGPTError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if not (args.temperature > 0 and args.guidance_scale >= 0):
        raise IGPTError("--temperature must be positive, --guidance_scale not negative.")
    if not Path(args.output).absolute().parent.is_dir():
        raise IGPTError(f"the folder of --output {args.output} does not exist.")
    if Path(args.output).is_dir():
        raise IGPTError(f"--output {args.output} is a folder: name a file in it.")
    if Path(args.output).suffix == ".png":
        raise IGPTError(f"--output {args.output} is the JSON file; the picture gets its name with .png.")
    return args


def load_checked(args):
    """Load model, processor and splits -> also the model's class index of each class of the data.

    Raises:
        IGPTError: They do not belong together, or there is too little to work on.
    """
    model, processor = load_pretrained(args.model)
    splits = load_splits(
        args.data,
        seed=args.seed,
        image_column=args.image_column,
        label_column=args.label_column,
        skip_bad_images=args.skip_bad_images,
    )
    warning = seen_images_warning(args.model, args.data, args.seed)
    if warning is not None and args.split in ("validation", "test"):
        print(f"warning: {warning}", file=sys.stderr)
    allow_resize = args.resize or was_trained_on(args.model, args.data)
    index = torch.tensor(check_data(splits["train"], model.config, allow_resize))
    if args.samples is not None:
        from igpt_hf.evaluation.sample_quality import check_sizes

        check_sizes(args.samples, len(splits["validation"]), len(splits["test"]))
    return model, processor, splits, index


def main():
    args = parse_arguments()
    transformers_logging.disable_progress_bar()
    use_all_cores()
    model, processor, splits, index = load_checked(args)
    config = model.config
    counts = torch.bincount(index[torch.tensor(splits["train"]["label"][:])], minlength=config.num_labels)
    prior = counts / counts.sum() if args.prior == "data" else torch.full((len(counts),), 1 / len(counts))

    # 1. Pictures -> ids (n, 1 + tokens), with the prompt of their class in the model.
    chosen = list(splits) if args.split == "all" else [args.split]
    needed = chosen if args.samples is None else list(splits)
    ids = {}
    for name, split in tokenize(DatasetDict({name: splits[name] for name in needed}), processor).items():
        ids[name] = TokenDataset(split, config, seed=args.seed).__getitems__(range(len(split)))["input_ids"]
        ids[name][:, 0] = config.vocab_size + index[ids[name][:, 0] - config.vocab_size]
    images = torch.cat([ids[name] for name in chosen])[: args.max_images]
    labels, pixels = images[:, 0] - config.vocab_size, processor.decode_pixels(images)

    # 2. Likelihood, codes, surprise.
    report = {"model": args.model, "data": args.data, "split": args.split, "seed": args.seed, "prior": args.prior}
    report["class_names"] = [config.id2label[label] for label in range(config.num_labels)]
    scores = log_likelihoods(model, images, args.batch_size)
    report |= likelihood_report(scores, labels, prior, config.num_pixels)
    report["nats_per_class"] = {config.id2label[label]: nats for label, nats in report["nats_per_class"].items()}
    for name in ("", "_marginal"):
        report[f"bits_per_image{name}"] = report[f"nats_per_image{name}"] / math.log(2)
    report["codecs"] = codec_bits(pixels)
    maps = surprise_maps(model, images, args.batch_size)
    report["calibration"] = calibration(maps["white"], pixels)

    # 3. Samples.
    nearest = {}
    if args.samples is not None:
        quality, nearest = measure_samples(args, model, processor, prior, ids)
        report |= quality

    # 4. JSON, picture, table.
    Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    picture = Path(args.output).with_suffix(".png")
    title = f"{Path(args.model).name} on {report['num_images']} images of {Path(args.data).name} ({args.split}): "
    title += f"{report['nats_per_image']:.2f} ± {report['nats_per_image_stderr']:.2f} nats per image given the class"
    evaluation_picture(picture, report, title, examples(pixels, maps), nearest)
    print_table(report)
    print(f"-> {args.output}, {picture}")


def measure_samples(args, model, processor, prior: torch.Tensor, ids: dict[str, torch.Tensor]):
    """Draw samples and compare them with the three splits -> numbers, and samples beside training images."""
    from igpt_hf.evaluation.sample_quality import Images, draw_samples, nearest_neighbors, sample_report

    config = model.config
    real = {
        name: Images(processor.decode_pixels(rows), (rows[:, 0] - config.vocab_size).numpy())
        for name, rows in ids.items()
    }
    settings = {"temperature": args.temperature, "guidance_scale": args.guidance_scale}
    samples = draw_samples(model, processor, prior, args.samples, args.seed, **settings)
    quality = settings | sample_report(samples, real, config.num_labels, args.seed)
    neighbor, distance = nearest_neighbors(samples.pixels, real["train"].pixels)
    strips = {
        "Samples as they came": slice(SHOWN),
        "Samples most like copies": distance.argsort(kind="stable")[:SHOWN],
    }
    nearest = {
        name: {
            "samples": samples.pixels[rows],
            "neighbors": real["train"].pixels[neighbor[rows]],
            "distance": distance[rows],
        }
        for name, rows in strips.items()
    }
    return quality, nearest


def examples(pixels: np.ndarray, maps: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The hardest, the most ordinary and the easiest images, with their surprise maps."""
    nats = maps["pixels"].sum(axis=(1, 2))
    order = nats.argsort(kind="stable")
    middle = max(0, (len(order) - SHOWN) // 2)
    strips = {"Hardest images": order[::-1][:SHOWN], "Ordinary images": order[middle : middle + SHOWN]}
    strips["Easiest images"] = order[:SHOWN]
    return {
        name: {
            "pixels": pixels[rows],
            "nats": nats[rows],
            "token_nats": maps["tokens"][rows],
            "pixel_nats": maps["pixels"][rows],
        }
        for name, rows in strips.items()
    }


def print_table(report: dict):
    """One line per number."""

    def line(meaning: str, value: str):
        print(f"{meaning:>36}  {value}")

    print(f"{report['num_images']} images of {report['data']}, {report['split']}")
    for name, meaning in (
        ("nats_per_image", "given the class"),
        ("nats_per_image_marginal", "class unknown (mixture)"),
        ("nats_per_image_unconditional", "start token"),
    ):
        line(meaning, f"{report[name]:8.3f} +- {report[name + '_stderr']:.3f} nats/image")
    line("given the class", f"{report['bits_per_pixel']:8.5f} bits/pixel")
    if report["bayes_accuracy"] is not None:  # there are classes to tell apart
        line("class by Bayes' rule", f"{report['bayes_accuracy']:8.2%} right")
    line("calibration error of pixels", f"{report['calibration']['calibration_error']:8.3%}")
    line("model, class unknown", f"{report['bits_per_image_marginal']:8.1f} bits/image")
    for name, bits in report["codecs"].items():
        line(name, f"{bits['in_sheets']:8.1f} bits/image in large sheets, {bits['alone']:.1f} one by one")
    if "num_samples" not in report:
        return
    print(f"{report['num_samples']} samples; comparisons with {report['num_compared']} real images a side")
    if report["sample_accuracy"] is not None:
        line("classifier, on test images", f"{report['classifier_test_accuracy']:8.2%} right")
        line("on samples", f"{report['sample_accuracy']:8.2%} +- {report['sample_accuracy_stderr']:.2%} as asked for")
    for name in ("fid", "precision", "recall", "density", "coverage"):
        line(name, f"{report[name]:8.3f}  (real images: {report[name + '_real_floor']:.3f})")
    if report["sample_accuracy"] is not None:
        line(
            "trained on samples, test images",
            f"{report['train_on_samples_accuracy']:8.2%} right "
            f"(of {report['num_trained_on']}; trained on as many real images: {report['train_on_real_accuracy']:.2%})",
        )
    line("told from real images", f"{report['two_sample_accuracy']:8.2%} +- {report['two_sample_accuracy_stderr']:.2%}"
         " (chance: 50%)")  # fmt: skip
    line("nearest training image", f"{report['nearest_training_pixels']:8.1f} pixels off "
         f"(test images: {report['nearest_training_pixels_test']:.1f})")  # fmt: skip
    line("exact copies of training images", f"{report['exact_copies']:8.2%} "
         f"(test images: {report['exact_copies_test']:.2%})")  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (IGPTError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}. `make install` brings it, or pip install 'igpt_hf[eval]' (checkout: '.[eval]').")
