"""How speed grows with image size, batch, preset and threads, as a plot and a table.

    python benchmarks/growth.py --output docs/images/growth.png     # about a minute on two cores
    python benchmarks/growth.py --quick                             # one point of each curve: does it run?

Images per second of a training step, of `generate` and of `log_likelihood`, medians in one process. The reference
point, from which one thing at a time is changed, is the `xxs` preset at 28x28 pixels, batch 64, all threads. The table
is the .json file beside the plot.
"""

import os
from pathlib import Path


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import torch
from matplotlib.figure import Figure

from harness import benchmark_parser, median_seconds, write_results
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.distributed import use_all_cores
from speed import generation, likelihood, train_step


TASKS = {"training": train_step, "generate": generation, "log-likelihood": likelihood}
CURVES = {  # what is changed -> its values
    "image_size": [14, 28, 56],
    "batch": [1, 4, 16, 64, 256],
    "preset": ["xxs", "xs", "s"],
}


def images_per_second(preset: str, image_size: int, batch: int, threads: int, budget: float) -> dict[str, float]:
    """Images per second of each task."""
    torch.set_num_threads(threads)
    model = IGPTForCausalImageModeling(IGPTConfig.from_preset(preset, image_size=image_size))
    return {name: batch / median_seconds(make(model, batch), budget) for name, make in TASKS.items()}


def measure(cores: int, is_quick: bool) -> dict[str, dict]:
    """All curves: what is changed -> value -> task -> images per second."""
    reference = {"preset": "xxs", "image_size": 28, "batch": 64, "threads": cores}
    table: dict[str, dict] = {}
    for changed, values in {**CURVES, "threads": sorted({1, cores})}.items():
        table[changed] = {}
        for value in values[:1] if is_quick else values:
            settings = {**reference, changed: value}
            if value == "s":  # large for a CPU
                settings["batch"] = 8
            row = images_per_second(**settings, budget=0.3 if is_quick else 2.0)
            table[changed][value] = row
            print(changed, value, {task: round(speed, 1) for task, speed in row.items()}, flush=True)
    return table


def plot(table: dict[str, dict], path: Path):
    """One panel for each thing that is changed, images per second on a logarithmic axis."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    panels = figure.subplots(1, len(table), sharey=True)
    for panel, (changed, curve) in zip(panels, table.items(), strict=True):
        labels = [str(value) for value in curve]
        for task in TASKS:
            panel.plot(labels, [speeds[task] for speeds in curve.values()], marker="o", label=task)
        panel.set(yscale="log", xlabel=changed.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("images per second")
    panels[0].legend()
    figure.savefig(path, dpi=100)


def main():
    parser = benchmark_parser(__doc__, "growth.png")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    table = measure(use_all_cores(), args.quick)
    plot(table, args.output)
    write_results(table, args.output.with_suffix(".json"))


if __name__ == "__main__":
    main()
