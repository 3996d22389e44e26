"""How speed grows with image size, batch, preset and threads, as a plot and a table.

    python benchmarks/growth.py --output docs/images/growth.png     # about a minute on two cores
    python benchmarks/growth.py --quick                             # one point of each curve: does it run?

Images per second of a training step, of `generate` and of `log_likelihood`, medians in one process. The reference
point, from which one thing at a time is changed, is the `xxs` preset at 28x28 pixels, batch 64, all threads.
"""

import argparse
import json
import os
from pathlib import Path


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import torch

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.distributed import use_all_cores
from speed import generation, images_per_second, likelihood, train_step


TASKS = {"training": train_step, "generate": generation, "log-likelihood": likelihood}
REFERENCE = {"preset": "xxs", "image_size": 28, "batch": 64}
CURVES = {  # what is changed -> its values
    "image_size": [14, 28, 56],
    "batch": [1, 4, 16, 64, 256],
    "preset": ["xxs", "xs", "s"],
}


def point(preset: str, image_size: int, batch: int, seconds: float) -> dict[str, float]:
    """Images per second of each task."""
    model = IGPTForCausalImageModeling(IGPTConfig.from_preset(preset, image_size=image_size))
    return {name: images_per_second(make(model, batch), batch, seconds) for name, make in TASKS.items()}


def measure(seconds: float, quick: bool) -> dict[str, dict]:
    """All curves: what is changed -> value -> task -> images per second."""
    table: dict[str, dict] = {}
    for changed, values in CURVES.items():
        table[changed] = {}
        for value in values[:1] if quick else values:
            batch = {"s": 8}.get(value, 64) if changed == "preset" else 64  # `s` is large for a CPU
            table[changed][value] = point(**{**REFERENCE, "batch": batch, changed: value}, seconds=seconds)
            print(changed, value, {task: round(speed, 1) for task, speed in table[changed][value].items()}, flush=True)
    table["threads"] = {}
    most = use_all_cores()
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        table["threads"][threads] = point(**REFERENCE, seconds=seconds)
    return table


def plot(table: dict[str, dict], path: Path):
    """One panel for each thing that is changed, images per second on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(table), figsize=(13, 3.4), sharey=True, layout="constrained")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("growth.png"), help="the plot; a .json of that name too")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    use_all_cores()
    torch.manual_seed(0)
    table = measure(0.3 if args.quick else 2.0, args.quick)
    args.output.with_suffix(".json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    plot(table, args.output)
    print(f"-> {args.output}")


if __name__ == "__main__":
    main()
