"""Which preset? Likelihood, samples and time against parameters: a plot and a table from finished runs.

    python scripts/evaluate.py runs/hoda --data RemainingSamples.cdb --samples 3000 --output runs/hoda/report.json
    python benchmarks/presets.py --hoda runs/hoda runs/hoda-xs --mnist runs/mnist-xxs --output presets.png

Each run has beside its `all_results.json` the `report.json` of scripts/evaluate.py, with samples. The table is the
.json file beside the plot.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure

from harness import benchmark_parser, write_results
from igpt_hf.training.arguments import preset_of_checkpoint


PANELS = {  # column -> title
    "nats_per_image_marginal": "marginal NLL, nats/image",
    "sample_accuracy": "samples recognized",
    "minutes": "training, minutes",
    "images_per_second": "training, images/s",
}
OF_REPORT = ("nats_per_image", "nats_per_image_marginal", "bayes_accuracy", "sample_accuracy")


def read_run(run: Path) -> dict:
    results, report = (json.loads((run / name).read_text()) for name in ("all_results.json", "report.json"))
    return {
        "preset": preset_of_checkpoint(str(run)),
        "num_parameters": results["num_parameters"],
        "epochs": results["epochs"],
        "minutes": results["train_runtime"] / 60,
        "images_per_second": results["train_images_per_second"],
        **{name: report[name] for name in OF_REPORT},
    }


def plot(table: dict[str, list[dict]], path: Path):
    """One panel for each column, a line for each data set."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for panel, (column, title) in zip(panels, PANELS.items(), strict=True):
        for data, rows in table.items():
            panel.plot([row["num_parameters"] for row in rows], [row[column] for row in rows], marker="o", label=data)
        panel.set(xscale="log", xlabel="parameters", title=title)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=100)


def main():
    parser = benchmark_parser(__doc__, "presets.png")
    for data in ("hoda", "mnist"):
        parser.add_argument(f"--{data}", nargs="+", type=Path, default=[], metavar="RUN")
    args = parser.parse_args()
    runs = {"HODA": args.hoda, "MNIST": args.mnist}
    table = {
        data: sorted(map(read_run, folders), key=lambda row: row["num_parameters"])
        for data, folders in runs.items()
        if folders
    }
    plot(table, args.output)
    write_results(table, args.output.with_suffix(".json"))


if __name__ == "__main__":
    main()
