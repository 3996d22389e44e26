"""Compare our model with transformers' ImageGPT and a gated PixelCNN of its size: same data, same time, exact nats.

    python benchmarks/baselines.py --data RemainingSamples.cdb --minutes 60 --output runs/baselines

Batch size and learning rate of each model are chosen on validation, by short runs of all its candidates below
(`--search_minutes`); the winner's images per second say over how many images its learning rate can decay within the
minutes of the final run. Each run is a process of its own and is not repeated once it is finished. The table is
written to OUTPUT/table.md, and all runs with their commands to OUTPUT/baselines.json.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from ablations import as_table, check_command
from harness import write_results
from igpt_hf import load_splits


ROOT = Path(__file__).resolve().parents[1]
IMAGEGPT, PIXELCNN, OURS = "stock ImageGPT", "gated PixelCNN", "igpt_hf"
CANDIDATES = {  # (batch size, learning rate)
    IMAGEGPT: [(4, 3e-3), (4, 8e-3), (8, 8e-3)],
    PIXELCNN: [(16, 2e-3), (16, 4e-3), (32, 8e-3)],
    OURS: [(32, 1e-2)],  # the default recipe
}
TRAIN_SHARE = 0.85  # of the images, see load_splits


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="as in train.py")
    parser.add_argument("--num_images", type=int, help="in the data, to count epochs; counted if left out")
    parser.add_argument("--minutes", type=float, default=60, help="of each model's training")
    parser.add_argument("--search_minutes", type=float, help="of each candidate's; a tenth of --minutes if left out")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="MODEL")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--num_threads", type=int, help="as in train.py")
    parser.add_argument("--output", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of both training scripts")
    args = parser.parse_args()
    if args.num_images is None:
        args.num_images = sum(map(len, load_splits(args.data, seed=args.seed).values()))
    args.search_minutes = args.minutes / 10 if args.search_minutes is None else args.search_minutes
    return args


def command(args, model: str, batch: int, rate: float, minutes: float, epochs: float | None) -> list[str]:
    """What trains a model, from the repository's root; `epochs` None: for so many minutes at a constant rate."""
    words = ["--data", args.data, "--seed", args.seed, "--learning_rate", rate, *args.flags]
    words += [] if args.num_threads is None else ["--num_threads", args.num_threads]
    if model == PIXELCNN:  # it decays its rate over the minutes
        script = ["benchmarks/pixelcnn.py", "--minutes", minutes, "--batch_size", batch]
    else:
        script = ["scripts/train.py", "--preset", "stock-xxs" if model == IMAGEGPT else "xxs"]
        script += ["--per_device_train_batch_size", batch, "--max_minutes", minutes, "--disable_tqdm", "true"]
        script += ["--lr_scheduler_type", "constant_with_warmup"] if epochs is None else ["--num_train_epochs", epochs]
    return [str(word) for word in [*script, *words]]


def run(words: list[str], folder: Path) -> dict:
    """Run to the end, unless that is done; returns the results in the words of all_results.json, and `images_seen`."""
    results = folder / "all_results.json"
    check_command(words, folder)
    if not results.is_file():
        output = ["--output_dir", str(folder), "--overwrite_output_dir", "1"]
        if "pixelcnn" in words[0]:
            output = ["--output", str(results)]
        subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:], *output], check=True)
    values = json.loads(results.read_text(encoding="utf-8"))
    if "images_seen" not in values:
        values["images_seen"] = round(values["train_images_per_second"] * values["train_runtime"])
    return values


def compare(args, model: str) -> dict:
    """Choose among a model's candidates, train the winner for the whole time."""
    tried = []
    for batch, rate in CANDIDATES[model]:
        words = command(args, model, batch, rate, args.search_minutes, None)
        results = run(words, args.output / f"{model.replace(' ', '-')}-{batch}-{rate:g}".lower())
        nats = results["validation_nats_per_image"]
        tried.append({"batch": batch, "learning_rate": rate, "validation": nats, "images": results["images_seen"]})
        print(f"{model}: batch {batch}, learning rate {rate:g}: {nats:.2f} nats", flush=True)
    best = min(tried, key=lambda candidate: candidate["validation"])
    images_per_minute = best["images"] / args.search_minutes
    epochs = round(args.minutes * images_per_minute / (TRAIN_SHARE * args.num_images), 3)
    words = command(args, model, best["batch"], best["learning_rate"], args.minutes, epochs)
    results = run(words, args.output / f"{model.replace(' ', '-')}-final".lower())
    return {
        "model": model,
        "parameters": results["num_parameters"],
        "batch": best["batch"],
        "learning rate": best["learning_rate"],
        "images seen": results["images_seen"],
        "minutes": round(results["train_runtime"] / 60, 1),
        "validation": round(results["validation_nats_per_image"], 2),
        "test": round(results["test_nats_per_image"], 2),
        "tried": tried,
        "command": shlex.join(["python", *(word.replace(args.data, Path(args.data).name) for word in words)]),
    }


def table(rows: list[dict]) -> str:
    """Markdown, best validation first, without the candidates and the commands."""
    rows = sorted(rows, key=lambda row: row["validation"])
    return as_table([{key: row[key] for key in row if key not in ("tried", "command")} for row in rows])


def main():
    args = parse_arguments()
    rows = []
    for model in args.only:
        rows.append(compare(args, model))
        write_results(rows, args.output / "baselines.json")
        (args.output / "table.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
