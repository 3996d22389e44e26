"""Speed of the `xxs` model compared with transformers' ImageGPT of the same size, and with the machine's limits.

    python benchmarks/speed.py --output speed.json            # everything, about five minutes on two cores
    python benchmarks/speed.py --quick                        # small batches, one repetition: does it run?

Both models have embedding dimension 16, 8 layers and 2 heads; ImageGPT (`stock` in the results) reads 784 pixels, ours
196 tokens. Each pair of figures is measured in this process, one after the other, with the same number of threads;
medians are printed. Run it on a machine that does nothing else.
"""

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import torch
from transformers.utils import logging as transformers_logging

from harness import benchmark_parser, median_seconds, write_results
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.distributed import use_all_cores
from igpt_hf.training.imagegpt_baseline import baseline_layout, baseline_model
from igpt_hf.training.optimizer import MuonAdamW, average_weights


BASELINE_LAYOUT = baseline_layout(num_classes=10)
MODELS = {
    "stock": lambda: baseline_model(BASELINE_LAYOUT),
    "ours": lambda: IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs")),
}


def batch_for(model, size: int) -> torch.Tensor:
    """Random images with a start token: (size, 785) pixels or (size, 197) tokens."""
    layout = model.config if isinstance(model, IGPTForCausalImageModeling) else BASELINE_LAYOUT
    images = torch.randint(0, layout.vocab_size, (size, layout.num_image_tokens), device=model.device)
    return torch.cat([torch.full_like(images[:, :1], layout.start_token_id), images], dim=1)


def train_step(model, size: int):
    """Returns a function that trains one step on a batch."""
    model.train()
    ids = batch_for(model, size)
    if isinstance(model, IGPTForCausalImageModeling):
        optimizer = MuonAdamW(model, lr=1e-2, muon_lr=2e-2, weight_decay=0.1)
        average_weights(optimizer, 0.998)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)

    def step():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def generation(model, size: int):
    """Returns a function that samples `size` images, cache on."""
    model.eval()
    prompt = batch_for(model, size)[:, :1]
    if isinstance(model, IGPTForCausalImageModeling):
        return lambda: model.generate(prompt)
    # With all 16 ids, as the likelihood counts them; a padding token, or `generate` warns of it each time.
    return lambda: model.generate(prompt, suppress_tokens=None, pad_token_id=BASELINE_LAYOUT.start_token_id)


def likelihood(model, size: int):
    """Returns a function that computes the likelihood of `size` images."""
    model.eval()
    ids = batch_for(model, size)
    if isinstance(model, IGPTForCausalImageModeling):
        return lambda: model.log_likelihood(ids, batch_size=size)

    @torch.no_grad()
    def score():
        log_probs = model(input_ids=ids[:, :-1], use_cache=False).logits.log_softmax(-1)
        return log_probs.gather(-1, ids[:, 1:, None]).double().sum((1, 2))

    return score


# Name -> how it is made, and the batch sizes for each model; the first size also warms up.
TASKS = {
    "train": (train_step, {"stock": [8, 1, 2, 4, 16, 64], "ours": [32, 16, 64, 128, 256, 512]}),
    "generate": (generation, {"stock": [1, 16, 64, 256], "ours": [1, 16, 64, 256, 1024]}),
    "likelihood": (likelihood, {"stock": [8, 1, 16, 64], "ours": [64, 8, 128, 256, 512]}),
}


def images_per_second(task: str, is_quick: bool) -> dict[str, dict[int, float]]:
    """Images per second of both models at their batch sizes."""
    make, batch_sizes = TASKS[task]
    print(task)
    table = {}
    for name, sizes in batch_sizes.items():
        model = MODELS[name]()
        table[name] = {}
        for size in sizes[:1] if is_quick else sizes:
            table[name][size] = size / median_seconds(make(model, size), budget=0.5 if is_quick else 5.0)
            print(f"  {name:5} batch {size:5}: {table[name][size]:10.2f} images/s", flush=True)
    return table


def ratio(table: dict[str, dict[int, float]], size: int | None = None) -> float | None:
    """Our speed divided by ImageGPT's at a batch size, or with None each at its best; None if it was not measured."""
    speeds = {name: row.get(size) if size else max(row.values()) for name, row in table.items()}
    return speeds["ours"] / speeds["stock"] if all(speeds.values()) else None


def machine_limits() -> dict[str, float]:
    """Matmul rate in GFLOP/s (float32, 2048 x 2048) and memory bandwidth in GB/s (copy of 256 MB)."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    source, target = torch.rand(64 * 1024**2), torch.empty(64 * 1024**2)
    flops = 2 * 2048**3 / median_seconds(lambda: torch.mm(a, b), budget=4)
    bandwidth = 2 * source.nbytes / median_seconds(lambda: target.copy_(source), budget=4)
    return {"matmul_gflops": flops / 1e9, "memory_gb_per_second": bandwidth / 1e9}


def flops_per_image(config: IGPTConfig) -> float:
    """Multiply-adds of one forward pass, counted twice: matrices, causal attention, local mixing, head."""
    c, t = config.hidden_size, config.num_image_tokens
    k = 2 * config.neighborhood_radius * (config.neighborhood_radius + 1)  # neighbors
    layer = 4 * c * c + 2 * c * config.intermediate_size + 2 * c * (t + 1) / 2 + c * k
    return 2 * t * (config.num_hidden_layers * layer + c * config.vocab_size)


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def memory_of_training(name: str, size: int) -> float:
    """Peak memory in MB of two training steps, beyond that of the model; call it in a process of its own."""
    model = MODELS[name]()
    before = peak_memory()
    step = train_step(model, size)
    step()
    step()
    return peak_memory() - before


def import_seconds(statement: str) -> float:
    """Median processor time of three fresh interpreters that run an import."""
    code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]
    return statistics.median(float(run.stdout) for run in runs)


def main():
    parser = benchmark_parser(__doc__, "speed.json")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    threads = use_all_cores(args.threads)
    torch.manual_seed(0)
    print(f"{threads} threads")
    train, generate, score = (images_per_second(task, args.quick) for task in TASKS)
    memory_size = 8 if args.quick else 64
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as fresh_processes:
        memory = {name: fresh_processes.submit(memory_of_training, name, memory_size).result() for name in MODELS}
    limits, flops = machine_limits(), flops_per_image(IGPTConfig.from_preset("xxs"))

    def fraction(table, passes: int) -> float:
        return max(table["ours"].values()) * passes * flops / 1e9 / limits["matmul_gflops"]

    results = {
        "threads": threads,
        "train_images_per_second": train,
        "generate_images_per_second": generate,
        "likelihood_images_per_second": score,
        "train_ratio": ratio(train),
        "generate_ratio_b1": ratio(generate, 1),
        "generate_ratio_b64": ratio(generate, 64),
        "generate_ratio_best": ratio(generate),
        "likelihood_ratio": ratio(score),
        "train_memory_mb": {"batch": memory_size, **memory},
        "train_memory_ratio": memory["ours"] / memory["stock"],
        "import_ratio": import_seconds("import igpt_hf") / import_seconds("import torch, transformers"),
        "mflop_per_image_forward": flops / 1e6,
        **limits,
        "fraction_of_limit_train": fraction(train, 3),  # a backward pass costs two forward passes
        "fraction_of_limit_generate": fraction(generate, 1),
        "fraction_of_limit_likelihood": fraction(score, 1),
    }
    print(json.dumps({key: value for key, value in results.items() if not isinstance(value, dict)}, indent=2))
    write_results(results, args.output)


if __name__ == "__main__":
    main()
