"""What each of the package's own fast paths is worth, beside what the library does without it.

    python benchmarks/parts.py --output parts.json     # about two minutes

Each row measures both ways in this process, one after the other, on the `xxs` model: medians, and their ratio.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from unittest.mock import patch


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import torch

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.distributed import use_all_cores
from igpt_hf.model import modeling_igpt
from igpt_hf.training.optimizer import Muon
from speed import batch_for, train_step


def milliseconds(run, seconds: float) -> float:
    """Median time of as many runs as fit, at least one, after two that are not counted."""
    run()
    began = time.perf_counter()
    run()
    repetitions = max(1, int(seconds / (time.perf_counter() - began)))
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def without_kernels():
    """The model's modules, one by one: the library's SDPA, torch's matrix products and convolution."""
    return patch.object(modeling_igpt, "are_blocks_usable", lambda *_: False)


def optimizer_step(model, make):
    """One step of an optimizer on the matrices of the blocks."""
    matrices = [module.weight for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return make(matrices).step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("parts.json"))
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run?")
    args = parser.parse_args()
    threads, seconds = use_all_cores(), 0.1 if args.quick else 4.0
    torch.manual_seed(0)
    rows = {}

    def compare(name: str, ours: float, library: float):
        rows[name] = {"ours_ms": ours, "library_ms": library, "ratio": library / ours}
        print(f"{name:58} {ours:9.2f} ms {library:9.2f} ms  {library / ours:6.1f} x", flush=True)

    def both(name: str, make, size: int):
        model = IGPTForCausalImageModeling(IGPTConfig())
        ours = milliseconds(make(model, size), seconds)
        with without_kernels():
            compare(name, ours, milliseconds(make(model, size), seconds))

    print(f"{threads} threads{'':50} ours      library")
    both("training step, 32 images", train_step, 32)
    both("training step, 128 images", train_step, 128)
    model = IGPTForCausalImageModeling(IGPTConfig()).eval()
    ids = batch_for(model, 64)
    likelihood = milliseconds(lambda: model.log_likelihood(ids), seconds)
    with without_kernels():
        compare("log-likelihood, 64 images", likelihood, milliseconds(lambda: model.log_likelihood(ids), seconds))
    torch_muon = optimizer_step(model, lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1))
    our_muon = optimizer_step(model, lambda p: Muon(p, 0.02, weight_decay=0.1))
    compare("Muon, a step", milliseconds(our_muon, seconds), milliseconds(torch_muon, seconds))
    for size in (1, 2) if args.quick else (1, 64):
        prompt = ids[:size, :1]
        library = milliseconds(lambda prompt=prompt: model.generate(prompt, cache_implementation="dynamic"), 0.1)
        ours = milliseconds(lambda prompt=prompt: model.generate(prompt), seconds)
        compare(f"generate, {size} image{'s' * (size > 1)}", ours, library)
    args.output.write_text(json.dumps({"threads": threads, **rows}, indent=2) + "\n", encoding="utf-8")
    print(f"-> {args.output}")


if __name__ == "__main__":
    main()
