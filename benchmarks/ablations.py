"""Train variants of the recipe under one budget and print a table: what pays, and how much?

    python benchmarks/ablations.py --data RemainingSamples.cdb --epochs 2 --seeds 42 --output runs/ablations
    python benchmarks/ablations.py --data digits.cdb --only "default" "radius 1" --seeds 1 2 3

Variants are lines of benchmarks/ablations.yaml. Each run is one of scripts/train.py or, where the model itself is
changed (`model: ...`), of benchmarks/variants.py, in a folder of its own. Each finished run is a line of the results
file (OUTPUT/runs.jsonl, or --results): what is there is not run again, and a run that was interrupted goes on from its
last checkpoint. All seeds share one split, so that they differ in initial weights and order alone. Validation decides:
the test split is not in the table. The table is also written to OUTPUT/table.md.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean

import yaml


ROOT = Path(__file__).resolve().parents[1]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="as in train.py")
    parser.add_argument("--variants", type=Path, default=ROOT / "benchmarks" / "ablations.yaml")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants, in this order; all if left out")
    parser.add_argument("--epochs", type=float, default=5, help="of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--split_seed", type=int, default=42, help="of the split, the same for all runs")
    parser.add_argument("--num_threads", type=int, help="as in train.py; it is not part of a run's identity")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), help="a folder for each run")
    parser.add_argument("--results", type=Path, help="the results file, appended to; OUTPUT/runs.jsonl if left out")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of train.py, for all runs")
    return parser.parse_args()


def read_variants(path: Path, only: list[str] | None) -> dict[str, dict]:
    """Name -> flags, in the order of `only`, or else of the file.

    Raises:
        SystemExit: A name in `only` that the file does not have.
    """
    variants = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = [name for name in only or () if name not in variants]
    if unknown:
        sys.exit(f"error: {path} has no variant {unknown[0]!r}; it has: {', '.join(variants)}.")
    return {name: variants[name] or {} for name in only or variants}


def command(args, flags: dict, seed: int) -> list[str]:
    """The command that trains one variant, from the repository's root; without the folder that it trains into."""
    budget = ["--data", args.data, "--num_train_epochs", str(args.epochs), "--seed", str(seed)]
    budget += ["--split_seed", str(args.split_seed)]
    changes = flags.get("model")
    script = ["scripts/train.py"] if changes is None else ["benchmarks/variants.py", "--model", *changes.split()]
    words = [word for name, value in flags.items() if name != "model" for word in (f"--{name}", str(value))]
    return [*script, *budget, *words, *args.flags]


def train(words: list[str], folder: Path, num_threads: int | None) -> dict:
    """Run to the end, from where it was; returns what all_results.json says."""
    results = folder / "all_results.json"
    check_command(words, folder)
    if not results.is_file():
        resume = ["--resume_from_checkpoint", "true"] if any(folder.glob("checkpoint-*/trainer_state.json")) else []
        threads = [] if num_threads is None else ["--num_threads", str(num_threads)]
        call = [sys.executable, str(ROOT / words[0]), *words[1:], "--output_dir", str(folder), *threads, *resume]
        subprocess.run(call, check=True)
    return json.loads(results.read_text(encoding="utf-8"))


def check_command(words: list[str], folder: Path):
    """Keep the command in its folder, and refuse a folder with the run of another one."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, command = folder / "command.txt", shlex.join(words)
    if kept.exists() and kept.read_text(encoding="utf-8") != command:
        sys.exit(f"error: {folder} has the run of another command ({kept.name}): take another --output, or delete it.")
    kept.write_text(command, encoding="utf-8")


def as_shown(words: list[str]) -> str:
    """The command without the folder of the data on this machine."""
    return shlex.join(["python", words[0], *(Path(word).name if Path(word).exists() else word for word in words[1:])])


def record(name: str, words: list[str], results: dict) -> dict:
    """What the results file keeps of a run."""
    return {
        "variant": name,
        "seed": results["seed"],
        "parameters": results["num_parameters"],
        "epochs": round(results["epochs"], 2),
        "minutes": round(results["train_runtime"] / 60, 1),
        "train": round(results["train_nats_per_image"], 3),
        "validation": round(results["validation_nats_per_image"], 3),
        "command": as_shown(words),
    }


def summarize(records: list[dict]) -> list[dict]:
    """One row for each variant and number of epochs, best validation first: means over the seeds, and the difference
    from `default` at the same epochs and seeds."""
    default = {(r["epochs"], r["seed"]): r["validation"] for r in records if r["variant"] == "default"}
    rows = []
    for name, epochs in dict.fromkeys((r["variant"], r["epochs"]) for r in records):
        runs = [r for r in records if (r["variant"], r["epochs"]) == (name, epochs)]
        nats = [r["validation"] for r in runs]
        gains = [r["validation"] - default[epochs, r["seed"]] for r in runs if (epochs, r["seed"]) in default]
        rows.append(
            {
                "variant": name,
                "seeds": ", ".join(str(r["seed"]) for r in runs),
                "parameters": runs[0]["parameters"],
                "epochs": epochs,
                "minutes": round(mean(r["minutes"] for r in runs), 1),
                "train": f"{mean(r['train'] for r in runs):.2f}",
                "validation": f"{mean(nats):.2f}",
                "spread": f"{max(nats) - min(nats):.2f}" if len(nats) > 1 else "",
                "against default": f"{mean(gains):+.2f}" if gains else "",
            }
        )
    return sorted(rows, key=lambda row: (row["epochs"], float(row["validation"])))


def as_table(rows: list[dict]) -> str:
    """Rows with the same keys as Markdown."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main():
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.results or args.output / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    variants = read_variants(args.variants, args.only)
    for seed in args.seeds:
        for name, flags in variants.items():
            words = command(args, flags, seed)
            print(f"{name}, seed {seed}: {shlex.join(words)}", flush=True)
            folder = args.output / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}-{args.epochs:g}-seed{seed}"
            done = {(r["variant"], r["seed"], r["command"]) for r in records}
            if (name, seed, as_shown(words)) in done:
                continue
            records.append(record(name, words, train(words, folder, args.num_threads)))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
            (args.output / "table.md").write_text(as_table(summarize(records)), encoding="utf-8")
    print(as_table(summarize(records)))


if __name__ == "__main__":
    main()
