"""Make the images of the documentation from a model that was trained on `synthetic`.

    python utils/make_figures.py runs/synthetic docs/images

Writes real_and_sampled.png (a row per class: digits that the model has not seen on the left, samples on the right),
completions.png and growing.gif (one digit of each class, token by token). Samples are made as the app makes them. All
digits are synthetic.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from igpt_hf import IGPTError, synthetic_digits
from igpt_hf.app.animation import growing, save_gif
from igpt_hf.app.answers import TEMPERATURE
from igpt_hf.cli import run_main
from igpt_hf.hub.bundled import SURE
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.plots import PAPER, ImageGrid, completion_sheet


COLUMNS = 7  # images of each kind in a row
AS_THE_APP: dict[str, float] = {"temperature": TEMPERATURE, "min_posterior": SURE}
SEED_OF_REAL = 20_240  # another than that of any training data


def real_digits(per_class: int) -> dict[int, np.ndarray]:
    """Digits of the distribution that the model has learned, but new ones: class -> (n, 28, 28), 0 and 1."""
    images, labels = synthetic_digits(10 * per_class, seed=SEED_OF_REAL)
    return {label: images[labels == label] // 255 for label in range(10)}


def real_and_sampled(model, processor, real: dict[int, np.ndarray]) -> ImageGrid:
    """A row per class: real images as the model sees them, a gap, samples."""
    rows, side = [], processor.image_size
    for label, images in real.items():
        samples = processor.decode(model.generate(**processor.prompt(class_labels=[label] * COLUMNS), **AS_THE_APP))
        rows.append([*processor.decode(processor.tokenize(images)), Image.new("L", (side, side), PAPER), *samples])
    names = [model.config.class_names[label] for label in real]
    return ImageGrid(rows, names, headers={0: "unseen test digits", COLUMNS + 1: "samples, as the app draws them"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model trained on `synthetic`, or its id on the Hub")
    parser.add_argument("output", type=Path, help="folder for the images")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    model, processor = load_pretrained(args.model)
    args.output.mkdir(parents=True, exist_ok=True)
    real = real_digits(COLUMNS)
    if len(real) != model.config.num_labels:
        raise IGPTError(f"{args.model} has {model.config.num_labels} classes, and `synthetic` {len(real)}.")

    set_seed(args.seed)
    real_and_sampled(model, processor, real).save(args.output / "real_and_sampled.png")
    labels = list(real)
    sheet = completion_sheet(model, processor, np.stack([real[label][0] for label in labels]), labels)
    sheet.save(args.output / "completions.png")
    ids = model.generate(**processor.prompt(class_labels=labels), **AS_THE_APP)
    path = args.output / "growing.gif"
    save_gif(growing(processor.decode_pixels(ids), processor), path)
    print(f"real_and_sampled.png, completions.png, growing.gif ({path.stat().st_size // 1000} kB) -> {args.output}")


if __name__ == "__main__":
    run_main(main)
