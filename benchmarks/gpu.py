"""Throughput on a GPU: training and sampling of several presets, compared with the card's matrix products.

    python benchmarks/gpu.py --output gpu.json                       # one CUDA card, bf16, about ten minutes
    python benchmarks/gpu.py --presets igpt-s --image_sizes 32 64 --output igpt-s.json
    python benchmarks/gpu.py --device cpu --quick --output gpu.json  # small and slow: does it run?

Training steps are compiled (`torch.compile`) and run in bf16 autocast; sampling uses transformers' `generate` with
a static cache, which it compiles by itself on CUDA. Medians; the first, compiling, runs are not counted. Batches hold
as many tokens whatever the size of the images.
"""

import itertools
import json

import torch

from harness import benchmark_parser, median_seconds, write_results
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.training.optimizer import MuonAdamW
from speed import batch_for


TRAINING_BATCH = {"xxs": 1024, "s": 256, "igpt-s": 128}
SAMPLING_BATCH = {"xxs": 1024, "s": 512, "igpt-s": 128}


def seconds_per_run(run, device: str, budget: float) -> float:
    """Median time, the card's work included."""

    def run_to_the_end():
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return median_seconds(run_to_the_end, budget, warm_ups=2)


def matmul_tflops(device: str, size: int, budget: float) -> float:
    """Rate of a bf16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_per_run(lambda: a @ b, device, budget) / 1e12


def training(model, size: int, budget: float, compiles: bool) -> float:
    """Images per second of whole training steps."""
    model.train()
    optimizer = MuonAdamW(model, lr=1e-3, muon_lr=2e-2, weight_decay=0.1)
    ids = batch_for(model, size)
    forward = torch.compile(model) if compiles else model

    def step():
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return size / seconds_per_run(step, model.device.type, budget)


def sampling(model, size: int, budget: float) -> float:
    """Images per second of `generate`, bf16 weights, static cache."""
    model = model.to(torch.bfloat16).eval()
    prompt = batch_for(model, size)[:, :1]

    def sample():
        model.generate(prompt, cache_implementation="static")

    return size / seconds_per_run(sample, model.device.type, budget)


def measure(model, preset: str, matmul_rate: float, budget: float, is_quick: bool) -> dict[str, float]:
    """Training and sampling of one model; `matmul_rate` is in TFLOP/s."""
    tokens = model.config.num_image_tokens
    training_batch, sampling_batch = (
        2 if is_quick else max(1, batch[preset] * 196 // tokens) for batch in (TRAINING_BATCH, SAMPLING_BATCH)
    )
    is_cuda = model.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    row = {
        "batch": training_batch,
        "training_images_per_second": training(model, training_batch, budget, compiles=not is_quick),
    }
    if is_cuda:
        row["training_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    # A step costs about 6 operations for each parameter and token.
    flops = 6 * model.num_parameters() * tokens * row["training_images_per_second"]
    row["fraction_of_matmul"] = flops / 1e12 / matmul_rate
    row["sampling_images_per_second"] = sampling(model, sampling_batch, budget)
    return row


def main():
    parser = benchmark_parser(__doc__, "gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", choices=TRAINING_BATCH, help="default: all three")
    parser.add_argument("--image_sizes", nargs="+", type=int, default=[28])
    parser.add_argument("--seconds", type=float, default=10, help="for each measurement; default: 10")
    parser.add_argument("--quick", action="store_true", help="batches of 2, one repetition, the two small presets")
    args = parser.parse_args()
    torch.manual_seed(0)
    budget = 0 if args.quick else args.seconds
    rate = matmul_tflops(args.device, 256 if args.quick else 8192, budget)
    results = {"device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU", "matmul_tflops": rate}
    presets = args.presets or (["xxs", "s"] if args.quick else list(TRAINING_BATCH))
    for preset, image_size in itertools.product(presets, args.image_sizes):
        config = IGPTConfig.from_preset(preset, image_size=image_size)
        row = measure(IGPTForCausalImageModeling(config).to(args.device), preset, rate, budget, args.quick)
        results[preset if image_size == 28 else f"{preset} {image_size}x{image_size}"] = row
        print(preset, image_size, json.dumps(row), flush=True)
    if not args.quick and "xxs" in presets:
        model = IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs")).to(args.device)
        results["seconds_for_10000_samples"] = 10_000 / sampling(model, 2_000, budget)
    write_results(results, args.output)


if __name__ == "__main__":
    main()
