"""Train variants of the recipe under one budget and print a table: what pays, and how much?

    python benchmarks/ablations.py --data RemainingSamples.cdb --epochs 5 --seeds 42 --output runs/ablations
    python benchmarks/ablations.py --data digits.cdb --only "default" "radius 1" --seeds 1 2 3

Variants are lines of benchmarks/ablations.yaml. Each run is one of scripts/train.py, in a folder of its own. What is
finished is not run again, and a run that was interrupted goes on from its last checkpoint. Validation decides: the
table does not show the test split. It is also written to OUTPUT/table.md, with the commands in OUTPUT/runs.jsonl.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml


HERE = Path(__file__).resolve().parent
TRAIN = HERE.parent / "scripts" / "train.py"
COLUMNS = ("variant", "seed", "parameters", "epochs", "minutes", "train", "validation", "fell at each evaluation")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="as in train.py")
    parser.add_argument("--variants", type=Path, default=HERE / "ablations.yaml")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants; all if left out")
    parser.add_argument("--epochs", type=float, default=5, help="of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of train.py, for all runs")
    return parser.parse_args()


def read_variants(path: Path, only: list[str] | None) -> dict[str, dict]:
    """Name -> flags, in the order of the file.

    Raises:
        SystemExit: A name in `only` that the file does not have.
    """
    variants = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = [name for name in only or () if name not in variants]
    if unknown:
        sys.exit(f"error: {path} has no variant {unknown[0]!r}; it has: {', '.join(variants)}.")
    return {name: flags or {} for name, flags in variants.items() if only is None or name in only}


def command(args, flags: dict, seed: int, folder: Path) -> list[str]:
    """The command that trains one variant."""
    budget = ["--data", args.data, "--num_train_epochs", str(args.epochs), "--seed", str(seed)]
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(TRAIN), *budget, "--output_dir", str(folder), *words, *args.flags]


def train(words: list[str], folder: Path) -> dict:
    """Run to the end, from where it was; returns what all_results.json says."""
    results = folder / "all_results.json"
    if not results.is_file():
        resume = ["--resume_from_checkpoint", "true"] if any(folder.glob("checkpoint-*/trainer_state.json")) else []
        subprocess.run(words + resume, check=True)
    return json.loads(results.read_text(encoding="utf-8"))


def row(name: str, results: dict) -> dict:
    """What the table shows of a run."""
    return {
        "variant": name,
        "seed": results["seed"],
        "parameters": results["num_parameters"],
        "epochs": round(results["epochs"], 2),
        "minutes": round(results["train_runtime"] / 60, 1),
        "train": round(results["train_nats_per_image"], 2),
        "validation": round(results["validation_nats_per_image"], 2),
        "fell at each evaluation": results["monotonic_train_loss"] and results["monotonic_validation_loss"],
    }


def as_table(rows: list[dict]) -> str:
    """Markdown, best validation first."""
    rows = sorted(rows, key=lambda row: row["validation"])
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[name] for name in COLUMNS] for row in rows)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main():
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    rows, records = [], []
    for seed in args.seeds:
        for name, flags in read_variants(args.variants, args.only).items():
            folder = args.output / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}-seed{seed}"
            words = command(args, flags, seed, folder)
            print(f"{name}, seed {seed}: {shlex.join(words[1:])}", flush=True)
            rows.append(row(name, train(words, folder)))
            records.append(json.dumps({**rows[-1], "command": shlex.join(["python", *words[1:]])}))
            (args.output / "table.md").write_text(as_table(rows), encoding="utf-8")
            (args.output / "runs.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    print(as_table(rows))


if __name__ == "__main__":
    main()
