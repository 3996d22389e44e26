"""Measure how much each layer of a trained, frozen Image GPT knows about the classes: one linear probe per layer.

    igpt probe runs/hoda --data digits.cdb --output probe.json

The probe (Chen et al. 2020, section 3.3) is a logistic regression on the hidden states of a layer, averaged over the
sequence and standardized. The model reads the images after the start token, so that no class can leak in. The probes
are fitted on the training split; validation chooses the best layer; the test split is only reported. Writes a JSON
file and, beside it, a plot of the same name.
"""

import json
import os
import sys
from pathlib import Path


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import numpy as np

from igpt_hf import load_splits, tokenize
from igpt_hf.cli import (
    JSON_KINDS,
    add_data_arguments,
    add_model_argument,
    check_output,
    check_positive,
    check_seed,
    command_parser,
    hide_library_bars,
    run_main,
    split_arguments,
)
from igpt_hf.data.tokenized import TokenDataset
from igpt_hf.distributed import use_all_cores
from igpt_hf.evaluation.compatibility import check_data, check_two_classes, seen_images_warning, was_trained_on
from igpt_hf.evaluation.likelihood import accuracy_stderr
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.plots import probe_curve, save_figure


def parse_arguments():
    parser = command_parser("probe", __doc__)
    add_model_argument(parser, is_optional=False)
    add_data_arguments(parser)
    parser.add_argument("--max_images", type=int, help="a random, stratified subset of at most this many images")
    parser.add_argument("--output", default="probe.json", help="the plot is written beside it, as .png")
    parser.add_argument("--figures", default="png", choices=["png", "pdf", "svg"], help="write the plot also as this")
    args = parser.parse_args()
    check_positive(args, "batch_size")
    check_seed(args)
    check_output(args.output, suffixes=JSON_KINDS, reads=[args.data], has_figure=True)
    return args


def main():
    args = parse_arguments()
    from igpt_hf.evaluation.linear_probe import layer_features, probe_layers  # needs scikit-learn

    hide_library_bars()
    use_all_cores()

    # 1. Model and processor.
    model, processor = load_pretrained(args.model)

    # 2. Data, in the splits of the training run.
    splits = load_splits(**split_arguments(args), max_images=args.max_images)
    warning = seen_images_warning(args.model, args.data, args.seed, args.max_images, splits.given)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    check_two_classes(splits["train"])
    check_data(splits["train"], model.config, allow_resize=args.resize or was_trained_on(args.model, args.data))

    # 3. Features and probes of each layer.
    features, labels = {}, {}
    for name, split in tokenize(splits, processor).items():
        ids = TokenDataset(split, model.config, seed=args.seed).__getitems__(range(len(split)))["input_ids"]
        features[name], labels[name] = layer_features(model, ids, args.batch_size), np.array(split["label"])
    layers = probe_layers(features, labels)

    # 4. JSON and plot.
    best = max(layers, key=lambda layer: layer["validation_accuracy"])
    report = {
        **{"model": args.model, "data": args.data, "seed": args.seed},
        **{f"num_{name}": len(split) for name, split in splits.items()},
        "num_features": model.config.hidden_size,
        "best_layer": best["layer"],
        "test_accuracy": best["test_accuracy"],
        "test_accuracy_stderr": accuracy_stderr(best["test_accuracy"], len(splits["test"])),
        "layers": layers,
    }
    Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot = Path(args.output).with_suffix(".png")
    title = f"Linear probes: {Path(args.model).name} on {Path(args.data).name}"
    save_figure(probe_curve(layers, best["layer"], title), plot, args.figures)

    # 5. Table.
    print("layer   train  validation    test")
    for layer in layers:
        accuracies = [layer[f"{name}_accuracy"] for name in ("train", "validation", "test")]
        mark = "  best by validation" if layer is best else ""
        print("{:5d}  {:6.2%}     {:6.2%}  {:6.2%}".format(layer["layer"], *accuracies) + mark)
    print(f"-> {args.output}, {plot}")


if __name__ == "__main__":
    run_main(main)
