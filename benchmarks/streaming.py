"""A million images that are never in memory at once: shards, tokens, 500 training steps, and the memory they take.

    python benchmarks/streaming.py --output streaming.json    # a million: about a quarter of an hour
    python benchmarks/streaming.py --images 20000 --shards 10 --steps 50 --output streaming.json

1. Makes 5,000 synthetic digits and writes `--images` variants (moved by up to two pixels, a few pixels flipped) as PNG
   into parquet shards, unless `--work` holds them already.
2. Tokenizes all shards through `igpt_hf.data.streaming`, into an empty cache.
3. Trains the reference model for `--steps` steps from the stream, with evaluations.

A thread reads the resident memory of the process and its children twice a second. `growth_mb` is the highest value of
a phase less the one after the phase's first tenth.
"""

import io
import json
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import set_seed

from harness import benchmark_parser, write_results
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor
from igpt_hf.data.shards import open_shards
from igpt_hf.data.streaming import stream_splits
from igpt_hf.data.synthetic import CLASS_NAMES, synthetic_digits
from igpt_hf.model.image_reading import to_marked_image
from igpt_hf.training.arguments import IGPTTrainingArguments
from igpt_hf.training.metrics import LossHistory
from igpt_hf.training.trainer import make_trainer


def resident_megabytes() -> float:
    """Of this process and its children."""
    this = psutil.Process()
    total = 0
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


@contextmanager
def measured_phase(name: str, phases: dict[str, dict[str, float]]):
    """Measure seconds and resident memory of what is done inside; `phases[name]` has them afterwards."""
    samples, is_done = [resident_megabytes()], threading.Event()

    def sample():
        while not is_done.wait(0.5):
            samples.append(resident_megabytes())

    thread, began = threading.Thread(target=sample, daemon=True), time.perf_counter()
    thread.start()
    yield
    is_done.set()
    thread.join()
    settled = samples[len(samples) // 10 :]
    phases[name] = {
        "seconds": time.perf_counter() - began,
        "first_mb": samples[0],
        "settled_mb": settled[0],
        "highest_mb": max(settled),
        "growth_mb": max(settled) - settled[0],
    }
    print(name, json.dumps(phases[name]), flush=True)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file that says that white is the foreground."""
    buffer = io.BytesIO()
    to_marked_image(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_shards(folder: Path, num_images: int, num_shards: int):
    """Variants of synthetic digits as PNG; image i depends on i and the shard alone."""
    digits, labels = synthetic_digits(min(5_000, num_images), seed=42)
    label_feature = datasets.ClassLabel(names=CLASS_NAMES)
    schema = datasets.Features(image=datasets.Image(), label=label_feature).arrow_schema
    folder.mkdir(parents=True)
    for shard in range(num_shards):
        rng = np.random.default_rng([42, shard])
        with pq.ParquetWriter(folder / f"{shard:05d}.parquet", schema) as writer:
            for rows in np.array_split(np.arange(shard, num_images, num_shards), 1 + num_images // num_shards // 1000):
                chosen = rng.integers(len(digits), size=len(rows))
                shifts, is_flipped = rng.integers(-2, 3, (len(rows), 2)), rng.random((len(rows), 28, 28)) < 0.005
                images = [
                    np.roll(digit, shift, axis=(0, 1)) ^ (255 * flipped.astype(np.uint8))
                    for digit, shift, flipped in zip(digits[chosen], shifts, is_flipped, strict=True)
                ]
                encoded = [{"bytes": png(pixels), "path": None} for pixels in images]
                columns = {"image": encoded, "label": labels[chosen].astype(np.int64)}
                writer.write_table(pa.table(columns, schema=schema))


def train(tokens, processor, steps: int, output_dir: Path):
    """Train the reference model from the stream; returns the Trainer's state."""
    interval = max(1, steps // 4)
    args = IGPTTrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        use_cpu=True,
    )
    set_seed(args.seed)
    trainer = make_trainer(IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs")), args, tokens, processor)
    trainer.train()
    return trainer.state


def measure(args, work: Path) -> dict:
    """All phases, below a folder with an empty cache."""
    cache = Path(tempfile.mkdtemp(prefix="cache-", dir=work))
    datasets.config.HF_DATASETS_CACHE = cache
    phases: dict[str, dict[str, float]] = {}
    shards = work / f"shards-{args.images}-{args.shards}"
    if not shards.exists():
        with measured_phase("writing the shards", phases):
            write_shards(shards, args.images, args.shards)
    processor = IGPTImageProcessor()
    with measured_phase("tokenizing", phases):
        source = open_shards(str(shards))
        _, tokens = stream_splits(source, processor, seed=42, max_eval_images=1_000, num_workers=args.workers)
    with measured_phase("training", phases):
        state = train(tokens, processor, args.steps, Path(tempfile.mkdtemp(dir=work)))
    sizes = {"shards_mb": shards, "tokens_mb": cache / "igpt_hf-tokens"}
    growth = max(phases[name]["growth_mb"] for name in ("tokenizing", "training"))
    return {
        "images": tokens["train"].num_images,
        "num_shards": args.shards,
        "steps": state.global_step,
        "validation_nats_per_image": LossHistory.from_log(state.log_history).validation,
        **{key: sum(p.stat().st_size for p in path.rglob("*.parquet")) / 1e6 for key, path in sizes.items()},
        "phases": phases,
        "images_per_second_tokenized": args.images / phases["tokenizing"]["seconds"],
        "growth_mb": growth,
        "is_flat_to_200_mb": growth <= 200,
    }


def main():
    parser = benchmark_parser(__doc__, "streaming.json")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument("--work", type=Path, help="where shards, cache and run go; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = measure(args, args.work or Path(temporary))
    print(json.dumps(results, indent=2))
    write_results(results, args.output)


if __name__ == "__main__":
    main()
