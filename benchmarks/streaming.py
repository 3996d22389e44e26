"""A million images that never are in memory at once: shards, tokens, 500 training steps, and the memory they take.

    python benchmarks/streaming.py --output streaming.json    # a million: about a quarter of an hour
    python benchmarks/streaming.py --images 20000 --shards 10 --steps 50 --output streaming.json

1. Draws 5,000 synthetic digits and writes `--images` variants (moved by up to two pixels, a few pixels flipped) as PNG
   into parquet shards, unless `--work` holds them already.
2. Tokenises all shards through `igpt_hf.data.streaming`, into an empty cache.
3. Trains the reference model for `--steps` steps from the stream, with evaluations.

A thread reads the resident memory of the process and its children twice a second. `growth_mb` is the highest value of
a phase less the one after the phase's first tenth.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil


def resident_megabytes() -> float:
    """Of this process and its children."""
    this = psutil.Process()
    total = 0
    for process in [this, *this.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total / 1e6


class Phases:
    """Seconds and resident memory of each phase."""

    def __init__(self):
        self.results, self.samples, self.is_done = {}, [], threading.Event()

    @contextmanager
    def phase(self, name: str):
        self.samples, done = [], threading.Event()

        def sample():
            while not done.wait(0.5):
                self.samples.append(resident_megabytes())

        thread, began = threading.Thread(target=sample, daemon=True), time.perf_counter()
        thread.start()
        yield
        done.set()
        thread.join()
        samples = self.samples or [resident_megabytes()]
        settled = samples[len(samples) // 10 :]
        self.results[name] = {
            "seconds": time.perf_counter() - began,
            "first_mb": samples[0],
            "settled_mb": settled[0],
            "highest_mb": max(settled),
            "growth_mb": max(settled) - settled[0],
        }
        print(name, json.dumps(self.results[name]), flush=True)


def write_shards(folder: Path, num_images: int, num_shards: int):
    """Variants of synthetic digits as PNG; image i depends on i and the shard alone."""
    import io

    import numpy as np
    import PIL.Image
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Image

    from igpt_hf.data.splits import WHITE_FOREGROUND, PngInfo
    from igpt_hf.data.synthetic import CLASS_NAMES, synthetic_digits

    digits, labels = synthetic_digits(min(5_000, num_images), seed=42)
    schema = Features(image=Image(), label=ClassLabel(names=CLASS_NAMES)).arrow_schema
    polarity = PngInfo()
    for key, value in WHITE_FOREGROUND.items():
        polarity.add_text(key, value)
    folder.mkdir(parents=True)
    for shard in range(num_shards):
        rng = np.random.default_rng([42, shard])
        with pq.ParquetWriter(folder / f"{shard:05d}.parquet", schema) as writer:
            for rows in np.array_split(np.arange(shard, num_images, num_shards), 1 + num_images // num_shards // 1000):
                encoded, chosen = [], rng.integers(len(digits), size=len(rows))
                shifts, is_flipped = rng.integers(-2, 3, (len(rows), 2)), rng.random((len(rows), 28, 28)) < 0.005
                for digit, shift, flipped in zip(digits[chosen], shifts, is_flipped, strict=True):
                    buffer = io.BytesIO()
                    pixels = np.roll(digit, shift, axis=(0, 1)) ^ (255 * flipped.astype(np.uint8))
                    PIL.Image.fromarray(pixels).save(buffer, "PNG", pnginfo=polarity, compress_level=1)
                    encoded.append({"bytes": buffer.getvalue(), "path": None})
                columns = {"image": encoded, "label": labels[chosen].astype(np.int64)}
                writer.write_table(pa.table(columns, schema=schema))


def train(tokens, processor, steps: int, output_dir: Path):
    from transformers import set_seed

    from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
    from igpt_hf.training.arguments import IGPTTrainingArguments
    from igpt_hf.training.trainer import make_trainer

    args = IGPTTrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=max(1, steps // 4),
        save_strategy="steps",
        save_steps=max(1, steps // 4),
        use_cpu=True,
    )
    set_seed(args.seed)
    trainer = make_trainer(IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs")), args, tokens, processor)
    trainer.train()
    return trainer.state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument("--work", type=Path, help="where shards, cache and run go; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("streaming.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        cache = tempfile.mkdtemp(prefix="cache-", dir=work)
        os.environ["HF_DATASETS_CACHE"] = cache  # read when datasets is imported
        measure(args, work)


def measure(args, work: Path):
    from igpt_hf import IGPTImageProcessor
    from igpt_hf.data.streaming import open_shards, stream_splits
    from igpt_hf.training.metrics import LossHistory

    phases, shards = Phases(), work / f"shards-{args.images}-{args.shards}"
    if not shards.exists():
        with phases.phase("writing the shards"):
            write_shards(shards, args.images, args.shards)
    processor = IGPTImageProcessor()
    with phases.phase("tokenizing"):
        source = open_shards(str(shards))
        _, tokens = stream_splits(source, processor, seed=42, max_eval_images=1_000, num_workers=args.workers)
    with phases.phase("training"):
        state = train(tokens, processor, args.steps, Path(tempfile.mkdtemp(dir=work)))
    history = LossHistory.from_log(state.log_history)
    sizes = {"shards_mb": shards, "tokens_mb": Path(os.environ["HF_DATASETS_CACHE"]) / "igpt_hf-tokens"}
    results = {
        "images": tokens["train"].num_images,
        "num_shards": args.shards,
        "steps": state.global_step,
        "validation_nats_per_image": history.validation,
        **{key: sum(p.stat().st_size for p in path.rglob("*.parquet")) / 1e6 for key, path in sizes.items()},
        "phases": phases.results,
        "images_per_second_tokenized": args.images / phases.results["tokenizing"]["seconds"],
        "growth_mb": max(phases.results[name]["growth_mb"] for name in ("tokenizing", "training")),
    }
    results["is_flat_to_200_mb"] = results["growth_mb"] <= 200
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
