"""Tell how much each layer of a trained, frozen Image GPT knows about the classes: one linear probe per layer.

    igpt probe runs/hoda --data digits.cdb --output probe.json

The probe (Chen et al. 2020, section 3.3) is a logistic regression on the hidden states of a layer, averaged over the
sequence and standardized. The model reads the images after the start token, so that no class can leak in. The probes
are fitted on the training split; validation says which layer is best; the test split is only reported. Writes a JSON
file and, beside it, a plot of the same name.
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
from transformers.utils import logging as transformers_logging

from igpt_hf import IGPTError, load_splits, tokenize
from igpt_hf.data.tokenized import TokenDataset
from igpt_hf.distributed import use_all_cores
from igpt_hf.evaluation.compatibility import check_data, check_two_classes, seen_images_warning, was_trained_on
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.plots import probe_curve


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="igpt probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument(
        "--data", default="synthetic", help="as in train.py: synthetic, a folder, .cdb, parquet, an id"
    )
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--resize", action="store_true", help="fit pictures of another size than the model's to it")
    parser.add_argument("--max_images", type=int, help="use a random part of so many images only")
    parser.add_argument(
        "--seed", type=int, default=42, help="of the split: the training run's --split_seed, or its --seed"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output", default="probe.json", help="the plot is written beside it, as .png")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise IGPTError(f"--batch_size must be at least 1, got {args.batch_size}.")
    if not Path(args.output).absolute().parent.is_dir():
        raise IGPTError(f"the folder of --output {args.output} does not exist.")
    if Path(args.output).is_dir():
        raise IGPTError(f"--output {args.output} is a folder: name a file in it.")
    if Path(args.output).suffix == ".png":
        raise IGPTError(f"--output {args.output} is the JSON file; the plot gets its name with .png.")
    return args


def main():
    args = parse_arguments()
    from igpt_hf.evaluation.linear_probe import layer_features, probe_layers  # needs scikit-learn

    transformers_logging.disable_progress_bar()
    use_all_cores()
    model, processor = load_pretrained(args.model)
    splits = load_splits(
        args.data,
        seed=args.seed,
        image_column=args.image_column,
        label_column=args.label_column,
        max_images=args.max_images,
        skip_bad_images=args.skip_bad_images,
    )
    warning = seen_images_warning(args.model, args.data, args.seed, args.max_images)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    check_two_classes(splits["train"])
    check_data(splits["train"], model.config, allow_resize=args.resize or was_trained_on(args.model, args.data))

    features, labels = {}, {}
    for name, split in tokenize(splits, processor).items():
        ids = TokenDataset(split, model.config, seed=args.seed).__getitems__(range(len(split)))["input_ids"]
        features[name], labels[name] = layer_features(model, ids, args.batch_size), np.array(split["label"])
    layers = probe_layers(features, labels)

    best = max(layers, key=lambda layer: layer["validation_accuracy"])
    accuracy = best["test_accuracy"]
    report = {
        **{"model": args.model, "data": args.data, "seed": args.seed},
        **{f"num_{name}": len(split) for name, split in splits.items()},
        "num_features": model.config.hidden_size,
        "best_layer": best["layer"],
        "test_accuracy": accuracy,
        "test_accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / len(splits["test"])),
        "layers": layers,
    }
    Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot = Path(args.output).with_suffix(".png")
    probe_curve(plot, layers, best["layer"], f"Linear probes: {Path(args.model).name} on {Path(args.data).name}")
    print("layer   train  validation    test")
    for layer in layers:
        shares = [layer[f"{name}_accuracy"] for name in ("train", "validation", "test")]
        mark = "  best by validation" if layer is best else ""
        print("{:5d}  {:6.2%}     {:6.2%}  {:6.2%}".format(layer["layer"], *shares) + mark)
    print(f"-> {args.output}, {plot}")


if __name__ == "__main__":
    try:
        main()
    except (IGPTError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}. `make install` brings it, or pip install 'igpt_hf[eval]' (checkout: '.[eval]').")
