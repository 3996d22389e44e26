"""Throughput on a GPU: training and sampling of several presets, beside the card's own matrix products.

    python benchmarks/gpu.py --output gpu.json                       # one CUDA card, bf16, about ten minutes
    python benchmarks/gpu.py --presets igpt-s --image_sizes 32 64 --output igpt-s.json
    python benchmarks/gpu.py --device cpu --quick --output gpu.json  # small and slow: does it run?

Training steps are compiled (`torch.compile`) and run in bf16 autocast; sampling uses the library's `generate` with a
static cache, which it compiles by itself on CUDA. Medians; the first, compiling, runs are not counted. Batches hold as
many tokens whatever the size of the images.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.training.optimizer import MuonAdamW


TRAINING_BATCH = {"xxs": 1024, "s": 256, "igpt-s": 128}
SAMPLING_BATCH = {"xxs": 1024, "s": 512, "igpt-s": 128}


def seconds_per_run(run, device: str, repetitions: int) -> float:
    """Median time, the card's work included."""
    times = []
    for _ in range(repetitions + 2):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def matmul_tflops(device: str, size: int, repetitions: int) -> float:
    """Rate of a bf16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_per_run(lambda: a @ b, device, repetitions) / 1e12


def random_images(model, size: int) -> torch.Tensor:
    config = model.config
    tokens = torch.randint(0, config.vocab_size, (size, config.num_image_tokens), device=model.device)
    return torch.cat([torch.full_like(tokens[:, :1], config.start_token_id), tokens], dim=1)


def training(model, size: int, device: str, repetitions: int, compiles: bool) -> float:
    """Images per second of whole training steps."""
    model.train()
    optimizer = MuonAdamW(model, lr=1e-3, muon_lr=2e-2, weight_decay=0.1)
    ids = random_images(model, size)
    forward = torch.compile(model) if compiles else model

    def step():
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return size / seconds_per_run(step, device, repetitions)


def sampling(model, size: int, device: str, repetitions: int) -> float:
    """Images per second of `generate`, bf16 weights, static cache."""
    model = model.to(torch.bfloat16).eval()
    prompt = torch.full((size, 1), model.config.start_token_id, device=device)
    return size / seconds_per_run(
        lambda: model.generate(prompt, cache_implementation="static"), device, max(1, repetitions // 5)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--presets", nargs="+", choices=TRAINING_BATCH, help="default: all three")
    parser.add_argument("--image_sizes", nargs="+", type=int, default=[28])
    parser.add_argument("--quick", action="store_true", help="batches of 2, one repetition, the two small presets")
    args = parser.parse_args()
    torch.manual_seed(0)
    repetitions = 1 if args.quick else 20
    device_name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    results = {
        "device": device_name,
        "matmul_tflops": matmul_tflops(args.device, 256 if args.quick else 8192, repetitions),
    }
    presets = args.presets or (["xxs", "s"] if args.quick else list(TRAINING_BATCH))
    for preset, image_size in itertools.product(presets, args.image_sizes):
        config = IGPTConfig.from_preset(preset, image_size=image_size)
        model = IGPTForCausalImageModeling(config).to(args.device)
        sizes = [
            2 if args.quick else max(1, batch[preset] * 196 // config.num_image_tokens)
            for batch in (TRAINING_BATCH, SAMPLING_BATCH)
        ]
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row = {"batch": sizes[0]}
        row["training_images_per_second"] = training(model, sizes[0], args.device, repetitions, not args.quick)
        if args.device == "cuda":
            row["training_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        # A step costs about 6 operations for each parameter and token.
        flops = 6 * model.num_parameters() * config.num_image_tokens * row["training_images_per_second"]
        row["fraction_of_matmul"] = flops / 1e12 / results["matmul_tflops"]
        row["sampling_images_per_second"] = sampling(model, sizes[1], args.device, repetitions)
        results[preset if image_size == 28 else f"{preset} {image_size}x{image_size}"] = row
        print(preset, image_size, json.dumps(row), flush=True)
    if not args.quick and "xxs" in presets:
        model = IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs")).to(args.device)
        results["seconds_for_10000_samples"] = 10_000 / sampling(model, 2_000, args.device, 5)
    args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"-> {args.output}")


if __name__ == "__main__":
    main()
