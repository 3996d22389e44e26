"""Find images that are not like the training data, by their likelihood: MNIST's digits among Persian ones.

    python examples/anomaly.py runs/hoda --data digits.cdb --other path/to/mnist.parquet --output anomaly.png

Scores the test split of --data (normal) and as many images of --other (foreign), and prints the area under the ROC
curve of each score: the probability that a foreign image has the higher score than a normal one, so 0.5 is chance.

Know what you measure before you rely on it:

* A likelihood measures how complex an image is, too. Simple foreign images can be likelier than the model's own kind:
  a model of CIFAR-10 finds SVHN's house numbers likelier than CIFAR-10's photographs (Nalisnick et al. 2019, "Do deep
  generative models know what they don't know?"). Here a black image beats every digit. So compare with a score that
  knows nothing, such as the amount of ink: what it can tell apart needs no model.
* Subtracting the size of the image in a lossless codec, which is complex where the image is (Serra et al. 2020, "Input
  complexity and out-of-distribution detection with likelihood-based generative models"), is meant to fix that. It
  needs a codec that is good at such images: PNG's files of 28x28 pixels are mostly headers.
* Measured with a model of HODA of four epochs, 1,119 digits a side: area 0.79 by likelihood, 0.75 corrected; 0.36 by
  ink and 0.37 by PNG alone, that is, MNIST's digits are the simpler ones, and yet less likely.
* Both sets go through the same image processor, but not every difference between them is of the kind you care about:
  MNIST's digits are smaller (20x20 pixels) than HODA's in this model (24x24), and drawn with other pens.
* A threshold is chosen on normal images alone (here: 5% of them are lost), and says nothing about foreign images of
  another kind than those that it was tried on.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score, roc_curve
from transformers.utils import logging as transformers_logging

from igpt_hf import load_splits
from igpt_hf.cli import check_output, run_main
from igpt_hf.distributed import use_all_cores
from igpt_hf.evaluation.codecs import codec_sizes
from igpt_hf.hub.loading import load_pretrained


SCORES = {
    "ink": "white pixels (no model)",
    "codec": "bits of the codec (no model)",
    "likelihood": "-log2 p(image)",
    "corrected": "-log2 p(image) - bits of the codec",
}


def scores_of(images: list, model, processor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Score n images, higher is stranger: each score (n,), and the binary pixels (n, height, width)."""
    ids = processor(images)["input_ids"]  # the start token: classes are unknown
    pixels = processor.decode_pixels(ids)
    bits = -model.log_likelihood(ids).numpy() / math.log(2)
    codec = 8.0 * codec_sizes(pixels, "png")
    ink = pixels.sum(axis=(1, 2)).astype(float)
    return {"ink": ink, "codec": codec, "likelihood": bits, "corrected": bits - codec}, pixels


def plot(path: Path, scores: dict[str, np.ndarray], is_foreign: np.ndarray, pixels: np.ndarray):
    """ROC curves, the likelihoods of both sets, and the foreign images that look most normal to the model."""
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=[4, 1.3])
    roc_axes, bits_axes = top.subplots(1, 2)
    for name, meaning in SCORES.items():
        false_alarms, found, _ = roc_curve(is_foreign, scores[name])
        style = "--" if "no model" in meaning else "-"
        area = roc_auc_score(is_foreign, scores[name])
        roc_axes.plot(false_alarms, found, style, label=f"{meaning}: {area:.3f}")
    roc_axes.plot([0, 1], [0, 1], ":", color="gray")
    roc_axes.set(xlabel="normal images reported", ylabel="foreign images found", title="ROC, and the area under it")
    roc_axes.legend(loc="lower right")
    bits = scores["likelihood"]
    bins = np.linspace(0, np.quantile(bits, 0.995), 60)
    bits_axes.hist(bits[~is_foreign], bins, alpha=0.6, label="normal")
    bits_axes.hist(bits[is_foreign], bins, alpha=0.6, label="foreign")
    bits_axes.set(xlabel="-log2 p(image), bits", ylabel="images", title="Likelihood of both sets")
    bits_axes.legend()
    likeliest = [row for row in bits.argsort() if is_foreign[row]][:16]
    bottom.suptitle("The foreign images that the model finds likeliest, in bits", fontsize=11)
    for axes, row in zip(bottom.subplots(1, 16), likeliest, strict=False):
        axes.imshow(pixels[row], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{bits[row]:.0f}", fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument("--data", required=True, help="what it was trained on; its test split is scored")
    parser.add_argument("--other", required=True, help="foreign images, any source that train.py takes")
    parser.add_argument("--seed", type=int, default=42, help="of the splits")
    parser.add_argument("--output", default="anomaly.png")
    args = parser.parse_args()
    check_output(args.output)
    transformers_logging.disable_progress_bar()
    use_all_cores()
    torch.manual_seed(args.seed)
    model, processor = load_pretrained(args.model)
    known, other = (load_splits(source, seed=args.seed)["test"] for source in (args.data, args.other))
    num = min(len(known), len(other))
    scores, pixels = scores_of([*known["image"][:num], *other["image"][:num]], model, processor)
    is_foreign = np.repeat([False, True], num)

    print(f"{num} images of {args.data} and {num} of {args.other}; foreign found where 5% of the normal are reported")
    for name, meaning in SCORES.items():
        score, area = scores[name], roc_auc_score(is_foreign, scores[name])
        found = (score[is_foreign] > np.quantile(score[~is_foreign], 0.95)).mean()
        print(f"{meaning:>36}  AUC {area:.3f}  found {found:6.1%}")
    plot(Path(args.output), scores, is_foreign, pixels)
    print(f"-> {args.output}")


if __name__ == "__main__":
    run_main(main)
