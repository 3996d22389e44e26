"""How much faster each of the package's own fast paths is than transformers and torch without it.

    python benchmarks/parts.py --output parts.json     # about two minutes

Each row measures both ways in this process, one after the other, on the `xxs` model: medians, and their ratio.
"""

import os
from unittest.mock import patch


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import torch

from harness import benchmark_parser, median_seconds, write_results
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.distributed import use_all_cores
from igpt_hf.model import modeling_igpt
from igpt_hf.training.optimizer import Muon
from speed import batch_for, likelihood, train_step


def without_kernels():
    """The model's modules, one by one: transformers' SDPA, torch's matrix products and convolution."""
    return patch.object(modeling_igpt, "are_blocks_usable", lambda *_: False)


def optimizer_step(model, make):
    """One step of an optimizer on the matrices of the blocks."""
    matrices = [module.weight for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return make(matrices).step


def main():
    parser = benchmark_parser(__doc__, "parts.json")
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run?")
    args = parser.parse_args()
    threads, budget = use_all_cores(), 0.1 if args.quick else 4.0
    torch.manual_seed(0)
    rows = {}

    def compare(name: str, ours: float, library: float):
        rows[name] = {"ours_ms": 1e3 * ours, "library_ms": 1e3 * library, "ratio": library / ours}
        print(f"{name:58} {1e3 * ours:9.2f} ms {1e3 * library:9.2f} ms  {library / ours:6.1f} x", flush=True)

    def compare_kernels(name: str, make, size: int):
        model = IGPTForCausalImageModeling(IGPTConfig())
        ours = median_seconds(make(model, size), budget)
        with without_kernels():
            compare(name, ours, median_seconds(make(model, size), budget))

    print(f"{threads} threads{'':50} ours      without")
    compare_kernels("training step, 32 images", train_step, 32)
    compare_kernels("training step, 128 images", train_step, 128)
    compare_kernels("log-likelihood, 64 images", likelihood, 64)
    model = IGPTForCausalImageModeling(IGPTConfig()).eval()
    torch_muon = optimizer_step(model, lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1))
    our_muon = optimizer_step(model, lambda p: Muon(p, 0.02, weight_decay=0.1))
    compare("Muon, a step", median_seconds(our_muon, budget), median_seconds(torch_muon, budget))
    for size in (1, 2) if args.quick else (1, 64):
        prompt = batch_for(model, size)[:, :1]
        library = median_seconds(lambda prompt=prompt: model.generate(prompt, cache_implementation="dynamic"), 0.1)
        ours = median_seconds(lambda prompt=prompt: model.generate(prompt), budget)
        compare(f"generate, {size} image{'s' * (size > 1)}", ours, library)
    write_results({"threads": threads, **rows}, args.output)


if __name__ == "__main__":
    main()
