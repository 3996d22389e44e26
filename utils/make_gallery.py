"""Make the figures of docs/gallery.md from a model and its data: samples, and completions of unseen images.

    python utils/make_gallery.py runs/shapes --data shapes --output docs/images/shapes

Writes OUTPUT_samples.png, a row per class, and OUTPUT_completions.png; nothing is selected. Give only data that may be
given away.
"""

import argparse
from dataclasses import replace

from transformers import set_seed

from igpt_hf import load_splits
from igpt_hf.cli import hide_library_bars, run_main
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.plots import parts_sheet, sample_sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument("--data", default="synthetic", help="what it was trained on; its test split is completed")
    parser.add_argument("--output", required=True, help="how the names of both files begin")
    parser.add_argument("--max_images", type=int, help="as in the training")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    args = parser.parse_args()
    hide_library_bars()
    model, processor = load_pretrained(args.model)
    test = load_splits(args.data, seed=42, max_images=args.max_images)["test"]
    labels = test["label"][:]
    kinds = sorted(set(labels))
    shown = test.select([labels.index(kinds[i * len(kinds) // 4]) for i in range(4)])  # four classes
    set_seed(args.seed)
    samples = replace(sample_sheet(model, processor, per_class=8), blocks=1)  # to be read on a telephone, too
    samples.save(f"{args.output}_samples.png")
    names = test.features["label"].names
    classes = [model.config.label_index(names[label]) for label in shown["label"][:]]
    parts_sheet(model, processor, shown["image"][:], classes).save(f"{args.output}_completions.png")
    print(f"-> {args.output}_samples.png, {args.output}_completions.png")


if __name__ == "__main__":
    run_main(main)
