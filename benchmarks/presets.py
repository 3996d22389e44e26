"""Which preset? Likelihood, samples and time against parameters: a plot and a table from finished runs.

    python scripts/evaluate.py runs/hoda --data RemainingSamples.cdb --samples 3000 --output runs/hoda/report.json
    python benchmarks/presets.py --hoda runs/hoda runs/hoda-xs --mnist runs/mnist-xxs --output presets.png

Each run has beside its `all_results.json` the `report.json` of scripts/evaluate.py, with samples. Runs may come from
different machines: the speed of training is measured here, one preset after the other, and the minutes are those that
the run's images take at this speed, on all cores. The table is the .json file beside the plot.
"""

import json
import os
from functools import cache
from pathlib import Path


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

from matplotlib.figure import Figure

from harness import benchmark_parser, median_seconds, write_results
from igpt_hf import IGPTConfig, IGPTError, IGPTForCausalImageModeling
from igpt_hf.cli import run_main
from igpt_hf.distributed import use_all_cores
from igpt_hf.training.arguments import preset_of_checkpoint
from speed import train_step


BATCH = 32  # images, the default of scripts/train.py


PANELS = (  # title, column, factor
    ("samples recognized, %", "sample_accuracy", 100),
    ("training, minutes on this machine", "minutes", 1),
)
OF_REPORT = ("nats_per_image", "nats_per_image_marginal", "bayes_accuracy", "sample_accuracy")


@cache
def images_per_second(preset: str, seconds: float) -> float:
    """Images per second of training steps of a preset on this machine."""
    model = IGPTForCausalImageModeling(IGPTConfig.from_preset(preset))
    return BATCH / median_seconds(train_step(model, BATCH), seconds)


def read_run(run: Path, seconds: float) -> dict:
    """The row of a run.

    Raises:
        IGPTError: It is of no preset, or a part of a longer training, whose images its results do not count.
    """
    results, report = (json.loads((run / name).read_text()) for name in ("all_results.json", "report.json"))
    preset = preset_of_checkpoint(str(run))
    if preset is None or results["model_name_or_path"] is not None:
        raise IGPTError(
            f"{run} is no whole training of a preset: its sizes are others, or it began with a checkpoint."
        )
    images = results["train_runtime"] * results["train_images_per_second"]
    speed = images_per_second(preset, seconds)
    return {
        "preset": preset,
        "num_parameters": results["num_parameters"],
        "epochs": results["epochs"],
        "minutes": images / speed / 60,
        "images_per_second": speed,
        **{name: report[name] for name in OF_REPORT},
    }


def plot(table: dict[str, list[dict]], path: Path):
    """The NLL of each data set in a panel of its own, then a panel for each other column with a line for each."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    panels = figure.subplots(1, len(table) + len(PANELS))
    names = {row["num_parameters"]: row["preset"] for rows in table.values() for row in rows}
    for index, (data, rows) in enumerate(table.items()):
        curves = [(panels[index], f"{data}: nats/image, class unknown", "nats_per_image_marginal", 1)]
        curves += [(panel, *curve) for panel, curve in zip(panels[len(table) :], PANELS, strict=True)]
        for panel, title, column, factor in curves:
            sizes, values = [row["num_parameters"] for row in rows], [factor * row[column] for row in rows]
            panel.plot(sizes, values, marker="o", label=data, color=f"C{index}")
            panel.set_title(title, fontsize=11)
    for panel in panels:
        panel.set(xscale="log", xlim=(0.8 * min(names), 1.25 * max(names)))
        labels = [f"{name}\n{size / 1000:,.0f} K" for size, name in names.items()]
        panel.set_xticks(list(names), labels=labels, fontsize=8)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[-1].legend()
    figure.savefig(path, dpi=100)


def main():
    parser = benchmark_parser(__doc__, "presets.png")
    parser.add_argument("--hoda", nargs="+", type=Path, default=[], metavar="RUN")
    parser.add_argument("--mnist", nargs="+", type=Path, default=[], metavar="RUN")
    parser.add_argument("--seconds", type=float, default=10, help="of measuring each preset's speed")
    args = parser.parse_args()
    use_all_cores()
    runs = {"HODA": args.hoda, "MNIST": args.mnist}
    table = {
        data: sorted((read_run(run, args.seconds) for run in folders), key=lambda row: row["num_parameters"])
        for data, folders in runs.items()
        if folders
    }
    plot(table, args.output)
    write_results(table, args.output.with_suffix(".json"))


if __name__ == "__main__":
    run_main(main)
