"""Speed of the `xxs` model beside the stock ImageGPT of the same size, and beside the limits of the machine.

    python benchmarks/speed.py --output speed.json            # everything, about four minutes on two cores
    python benchmarks/speed.py --quick                        # small batches, one repetition: does it run?

Both models have embedding dimension 16, 8 layers and 2 heads; the stock one reads 784 pixels, ours 196 tokens. Each
pair of figures is measured in this process, one after the other, with the same number of threads; medians are
printed. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import torch
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling
from transformers.utils import logging as transformers_logging

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.distributed import use_all_cores
from igpt_hf.training.optimizer import MuonAdamW, average_weights


STOCK_LENGTH = 785  # the start token and 784 pixels
START = 15


def baseline_model():
    """The library's ImageGPT at the seed's size: vocabulary 16, every pixel predicted."""
    shape = {"n_embd": 16, "n_layer": 8, "n_head": 2, "vocab_size": 16, "n_positions": STOCK_LENGTH}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = ImageGPTConfig(**shape, **no_dropout, bos_token_id=START)
    return ImageGPTForCausalImageModeling(config)


def our_model():
    return IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs"))


def batch_for(model, size: int) -> torch.Tensor:
    """Random images with a start token: (size, 785) pixels or (size, 197) tokens."""
    if isinstance(model, IGPTForCausalImageModeling):
        config = model.config
        images = torch.randint(0, config.vocab_size, (size, config.num_image_tokens))
        return torch.cat([torch.full((size, 1), config.start_token_id), images], dim=1)
    return torch.cat([torch.full((size, 1), START), torch.randint(0, 2, (size, STOCK_LENGTH - 1))], dim=1)


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
    """Returns a function that draws `size` images, cache on."""
    model.eval()
    if isinstance(model, IGPTForCausalImageModeling):
        prompt = torch.full((size, 1), model.config.start_token_id)
        return lambda: model.generate(prompt)
    prompt = torch.full((size, 1), START)
    return lambda: model.generate(prompt, max_length=STOCK_LENGTH, do_sample=True, top_k=0, pad_token_id=START)


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


def images_per_second(run, size: int, seconds: float) -> float:
    """Median over repetitions within about `seconds`, at least two, after one that warms up."""
    began = time.perf_counter()
    run()
    warm_up = time.perf_counter() - began
    repetitions = max(2, min(50, int(seconds / max(warm_up, 1e-4)))) if warm_up < seconds else 1
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return size / statistics.median(times)


def measure(make, batch_sizes: dict[str, list[int]], seconds: float) -> dict[str, dict[int, float]]:
    """Images per second of both models at their batch sizes."""
    models = {"stock": baseline_model(), "ours": our_model()}
    table = {name: {} for name in models}
    for name, model in models.items():
        for size in batch_sizes[name]:
            table[name][size] = images_per_second(make(model, size), size, seconds)
            print(f"  {name:5} batch {size:5}: {table[name][size]:10.2f} images/s", flush=True)
    return table


def machine_limits() -> dict[str, float]:
    """Matmul rate in GFLOP/s (float32, 2048 x 2048) and memory bandwidth in GB/s (copy of 256 MB)."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    source, target = torch.rand(64 * 1024**2), torch.empty(64 * 1024**2)
    flops = 2 * 2048**3 * images_per_second(lambda: torch.mm(a, b), 1, 4)
    bandwidth = 2 * source.nbytes * images_per_second(lambda: target.copy_(source), 1, 4)
    return {"matmul_gflops": flops / 1e9, "memory_gb_per_second": bandwidth / 1e9}


def flops_per_image(config: IGPTConfig) -> float:
    """Multiply-adds of one forward pass, counted twice: matrices, causal attention, local mixing, head."""
    c, t = config.hidden_size, config.num_image_tokens
    k = 2 * config.neighborhood_radius * (config.neighborhood_radius + 1)  # neighbors
    layer = 4 * c * c + 2 * c * config.intermediate_size + 2 * c * (t + 1) / 2 + c * k
    return 2 * t * (config.num_hidden_layers * layer + c * config.vocab_size)


def peak_memory(name: str, size: int) -> float:
    """Peak resident memory in MB of a process that trains two steps, less that of one that only builds the model."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import speed; "
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024; "
        "model = speed.{}_model(); base = peak(); step = speed.train_step(model, {}); step(); step(); "
        "print(peak() - base)"
    ).format({"stock": "stock", "ours": "our"}[name], size)
    here = os.path.dirname(os.path.abspath(__file__))
    return float(subprocess.run([sys.executable, "-c", code, here], check=True, capture_output=True, text=True).stdout)


def import_seconds(statement: str) -> float:
    """Median processor time of three fresh interpreters that run an import."""
    code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]
    return statistics.median(float(run.stdout) for run in runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="speed.json")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    threads, seconds = use_all_cores(args.threads), 0.5 if args.quick else 5.0
    torch.manual_seed(0)

    def sizes(stock, ours):
        return {"stock": stock[:1] if args.quick else stock, "ours": ours[:2] if args.quick else ours}

    print(f"{threads} threads\ntraining")
    train = measure(train_step, sizes([8, 1, 2, 4, 16, 64], [32, 16, 64, 128, 256, 512]), seconds)
    print("generate")
    generate = measure(generation, sizes([1, 16, 64, 256], [1, 16, 64, 256, 1024]), seconds)
    print("log-likelihood")
    score = measure(likelihood, sizes([8, 1, 16, 64], [64, 8, 128, 256, 512]), seconds)
    memory_size = 8 if args.quick else 64
    memory = {name: peak_memory(name, memory_size) for name in ("stock", "ours")}
    limits, flops = machine_limits(), flops_per_image(IGPTConfig.from_preset("xxs"))

    def ratio(table, size=None):
        ours, stock = (table[name].get(size) if size else max(table[name].values()) for name in ("ours", "stock"))
        return ours / stock if ours and stock else None

    def fraction(table, passes):
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
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=2)
    print(json.dumps({key: value for key, value in results.items() if not isinstance(value, dict)}, indent=2))


if __name__ == "__main__":
    main()
