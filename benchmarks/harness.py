"""What the benchmarks share: their flags, median times, and results as JSON."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median


WARMUP = 0.02  # share of the time


def benchmark_parser(description: str, output: str) -> argparse.ArgumentParser:
    """A parser with the flag --output; the description keeps its line breaks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(output), help=f"default: {output}")
    return parser


def median_seconds(run: Callable, budget: float, warm_ups: int = 1) -> float:
    """Median time of a call, repeated until `budget` seconds are spent, and at least once.

    Args:
        run: Is called without arguments.
        budget: Seconds.
        warm_ups: Calls before, which are not counted: the first one may compile.
    """
    for _ in range(warm_ups):
        run()
    times: list[float] = []
    while not times or sum(times) < budget:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return median(times)


def warm_up_and_decay(share: float) -> float:
    """Factor of a learning rate when this share of the time is over: up in a straight line, then down to 0."""
    return min(share / WARMUP, (1 - share) / (1 - WARMUP))


def write_results(results, path: Path):
    """Write results as JSON and print where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"-> {path}")
