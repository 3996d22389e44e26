"""The difference of two models' likelihoods on the same images, with the standard error of the differences.

    python benchmarks/paired.py nats runs/hoda --data RemainingSamples.cdb --output new.npz
    python benchmarks/paired.py nats runs/old --data RemainingSamples.cdb --output old.npz    # maybe at another commit
    python benchmarks/paired.py difference new.npz old.npz --output paired.json

Images differ in their nats far more than models do, so that the standard errors of two means say little about their
difference. `nats` needs nothing of igpt_hf but the names at its top level: a model of an earlier version is measured
by the code of its commit, with `PYTHONPATH=path/to/that/checkout`.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from harness import write_results


def nats_of_test_split(run: str, data: str, seed: int) -> dict[str, np.ndarray]:
    """Tokens of the test images, (n, N), and their nats given their class, (n,).

    Raises:
        ValueError: The model does not know a class of the data.
    """
    from igpt_hf import IGPTForCausalImageModeling, IGPTImageProcessor, load_splits

    split = load_splits(data, seed=seed)["test"]
    model = IGPTForCausalImageModeling.from_pretrained(run).eval()
    names = split.features["label"].names
    if unknown := set(names) - set(model.config.label2id):
        raise ValueError(f"{run} does not know the classes {', '.join(sorted(unknown))} of {data}.")
    processor = IGPTImageProcessor.from_pretrained(run)
    tokens = processor.tokenize(split["image"][:], np.random.default_rng(seed)).astype(np.int64)
    prompts = [model.config.vocab_size + model.config.label2id[names[label]] for label in split["label"][:]]
    ids = torch.from_numpy(np.column_stack([prompts, tokens]))
    return {"tokens": tokens, "nats": -model.log_likelihood(ids).numpy()}


def difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of first minus second, nats per image, and its standard error.

    Raises:
        ValueError: They are not of the same images.
    """
    if not np.array_equal(first["tokens"], second["tokens"]):
        raise ValueError("the two files are of other images: take the same --data and --seed, and models whose "
                         "processors make the same tokens of them.")  # fmt: skip
    differences = first["nats"] - second["nats"]
    return {
        "num_images": len(differences),
        "first": float(first["nats"].mean()),
        "second": float(second["nats"].mean()),
        "difference": float(differences.mean()),
        "difference_stderr": float(differences.std(ddof=1) / math.sqrt(len(differences))),
        "first_is_lower": float((differences < 0).mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    nats = steps.add_parser("nats", help="of the images of a model's test split, as .npz")
    nats.add_argument("run", help="a model's folder")
    nats.add_argument("--data", required=True)
    nats.add_argument("--seed", type=int, default=42, help="of the split, and of the pixels of gray images")
    both = steps.add_parser("difference", help="of two such files, the first minus the second, as JSON")
    both.add_argument("files", type=Path, nargs=2)
    for step in (nats, both):
        step.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.step == "nats":
        with open(args.output, "wb") as file:
            np.savez(file, **nats_of_test_split(args.run, args.data, args.seed))
        print(f"-> {args.output}")
    else:
        first, second = (dict(np.load(file)) for file in args.files)
        write_results(difference(first, second), args.output)


if __name__ == "__main__":
    main()
