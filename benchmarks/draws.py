"""Draw from the bundled model as the app and the demo page do: how many draws does another classifier recognize?

    python benchmarks/draws.py
    python benchmarks/draws.py --temperature 0.7 --min_posterior 0.9999 --seed 1

As many of each class. A LeNet judges them that is trained on synthetic digits with another seed than the model's.
Three rows: the model's distribution as it is, the settings with which app and page begin, and unseen synthetic digits.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from harness import write_results
from igpt_hf import load_splits
from igpt_hf.app.answers import TEMPERATURE
from igpt_hf.data.tokenized import tokenize
from igpt_hf.evaluation.likelihood import accuracy_stderr
from igpt_hf.evaluation.sample_quality import Images, LeNet, cached_classifier
from igpt_hf.hub.bundled import DEFAULT_MODEL, SURE, bundled
from igpt_hf.hub.loading import load_pretrained


DATA_SEED = 1  # the bundled model's digits were drawn with 42


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=bundled(DEFAULT_MODEL), help="default: the bundled persian-digits")
    parser.add_argument("--num", type=int, default=3000, help="draws")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="default: as the app begins")
    parser.add_argument("--min_posterior", type=float, default=SURE, help="default: as the app begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    return parser.parse_args()


def recognized(classifier: LeNet, images: Images) -> dict:
    """The share of images whose class the classifier sees, its standard error, and the share of each class."""
    labels, is_right = images.labels, classifier.predict(images.pixels) == images.labels
    share = float(is_right.mean())
    by_class = {int(label): float(is_right[labels == label].mean()) for label in np.unique(labels)}
    worst = min(by_class.values())
    return {"recognized": share, "stderr": accuracy_stderr(share, len(labels)), "worst": worst, "by_class": by_class}


def data_and_judge(source: str, processor, seed: int) -> tuple[dict[str, Images], LeNet]:
    """The splits of the data as the model sees them, and a classifier that was trained on the training split."""
    splits = tokenize(load_splits(source, seed=seed), processor)
    data = {
        name: Images(processor.decode_pixels(torch.tensor(split["tokens"])), np.array(split["label"]))
        for name, split in splits.items()
    }
    return data, cached_classifier(data["train"], processor.num_labels, seed)


def main():
    args = parse_arguments()
    model, processor = load_pretrained(args.model)
    data, classifier = data_and_judge("synthetic", processor, DATA_SEED)
    labels = np.arange(args.num) % model.config.num_labels
    prompt = processor.prompt(class_labels=labels.tolist())
    settings = {"temperature": args.temperature, "min_posterior": args.min_posterior}
    results: dict = {"settings": settings, "seed": args.seed, "num": args.num}
    choices: dict = {"as the model is": {}, "as app and page begin": settings}
    for name, choice in choices.items():
        torch.manual_seed(args.seed)
        results[name] = recognized(
            classifier, Images(processor.decode_pixels(model.generate(**prompt, **choice)), labels)
        )
    results["unseen digits"] = recognized(classifier, data["test"])
    for name in (*choices, "unseen digits"):
        row = results[name]
        classes = " ".join(f"{100 * share:.1f}" for share in row["by_class"].values())
        print(f"{name:22} {100 * row['recognized']:.2f}% (+-{100 * row['stderr']:.2f})   by class: {classes}")
    if args.output:
        write_results(results, args.output)


if __name__ == "__main__":
    main()
