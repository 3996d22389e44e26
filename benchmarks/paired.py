"""The difference of two models' likelihoods on the same images: its standard error is that of the differences.

    python benchmarks/paired.py nats runs/hoda --data RemainingSamples.cdb --output new.npz
    python benchmarks/paired.py nats runs/old --data RemainingSamples.cdb --output old.npz    # maybe at another commit
    python benchmarks/paired.py difference new.npz old.npz --output paired.json

Images differ in their nats far more than models do, so that the standard errors of two means say little about their
difference. `nats` needs nothing of igpt_hf but the names at its top level: run it with the code that made the model.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from harness import write_results


def nats_of_test_split(run: str, data: str, seed: int) -> dict[str, np.ndarray]:
    """Ids (n, 1 + N) of the test images, prompted with their classes, and their nats (n,)."""
    from igpt_hf import IGPTForCausalImageModeling, IGPTImageProcessor, load_splits

    split = load_splits(data, seed=seed)["test"]
    processor = IGPTImageProcessor.from_pretrained(run)
    ids = processor(images=split["image"][:], class_labels=split["label"][:])["input_ids"]
    model = IGPTForCausalImageModeling.from_pretrained(run).eval()
    return {"ids": ids.numpy(), "nats": -model.log_likelihood(torch.as_tensor(ids)).numpy()}


def difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of first minus second, nats per image, and its standard error.

    Raises:
        ValueError: They are not of the same images.
    """
    if not np.array_equal(first["ids"], second["ids"]):
        raise ValueError("these are not the nats of the same images: give the same --data and --seed, and models that "
                         "binarize alike.")  # fmt: skip
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
    nats = steps.add_parser("nats", help="of the images of a model's test split")
    nats.add_argument("run", help="a model's folder")
    nats.add_argument("--data", required=True)
    nats.add_argument("--seed", type=int, default=42, help="of the split")
    both = steps.add_parser("difference", help="of two such files, the first minus the second")
    both.add_argument("files", type=Path, nargs=2)
    for step in (nats, both):
        step.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.step == "nats":
        np.savez(args.output, **nats_of_test_split(args.run, args.data, args.seed))
        print(f"-> {args.output}")
    else:
        first, second = (dict(np.load(file)) for file in args.files)
        write_results(difference(first, second), args.output)


if __name__ == "__main__":
    main()
