"""Evaluate a trained Image GPT: exact likelihoods, classification, codecs, calibration and sample quality.

    igpt evaluate runs/hoda --data digits.cdb --output report.json                  # the test split
    igpt evaluate runs/hoda --data digits.cdb --samples 1000 --output report.json   # and its samples
    igpt evaluate runs/hoda --data other.cdb --split all --output report.json       # images never seen
    igpt evaluate runs/mnist --data path/to/mnist --draws 5 --output report.json    # binarized by chance: five times

The splits are those of the training run if the data and --seed are, and the run had all images (no --max_images, no
--streaming); otherwise a warning says so. Prints a table, writes a JSON file and, beside it, a figure of the same
name: calibration, nats per class, confusion, codecs, the hardest and easiest images with their surprise maps and, with
--samples, samples beside the training images nearest to them. Where the data has one class only, what needs classes is
null. In Python: `igpt_hf.evaluation.report.evaluate_model`.
"""

import json
import os
import sys
from pathlib import Path


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does


from igpt_hf import load_splits
from igpt_hf.cli import (
    JSON_KINDS,
    add_data_arguments,
    add_model_argument,
    check_output,
    check_positive,
    check_sampling,
    check_seed,
    command_parser,
    hide_library_bars,
    run_main,
    split_arguments,
)
from igpt_hf.data.inspection import doubts_of
from igpt_hf.distributed import use_all_cores
from igpt_hf.evaluation.compatibility import seen_images_warning, was_trained_on
from igpt_hf.evaluation.report import evaluate_model, format_table
from igpt_hf.evaluation.report_figure import evaluation_figure
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.plots import save_figure


def parse_arguments():
    parser = command_parser("evaluate", __doc__)
    add_model_argument(parser, is_optional=False)
    add_data_arguments(parser)
    parser.add_argument("--split", default="test", choices=["train", "validation", "test", "all"])
    parser.add_argument("--max_images", type=int, help="evaluate only this many images, the first of the split")
    parser.add_argument("--draws", type=int, default=1, help="of the pixels of stochastically binarized images")
    parser.add_argument("--samples", type=int, help="sample this many images and compare them with real ones")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples; 1: the model's distribution")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="of the samples; above 1: more of a class")
    parser.add_argument("--prior", default="data", choices=["data", "uniform"], help="p(class): as in train, or equal")
    parser.add_argument("--output", default="report.json", help="the figure is written beside it, as .png")
    parser.add_argument(
        "--figures",
        default="png",
        choices=["png", "pdf", "svg"],
        help="write the figure also as this",
    )
    args = parser.parse_args()
    check_positive(args, "max_images", "draws", "samples", "batch_size")
    check_sampling(args)
    check_seed(args)
    check_output(args.output, suffixes=JSON_KINDS, reads=[args.data], has_figure=True)
    return args


def main():
    args = parse_arguments()
    hide_library_bars()
    use_all_cores()

    # 1. Model and processor.
    model, processor = load_pretrained(args.model)

    # 2. Data, in the splits of the training run.
    splits = load_splits(**split_arguments(args))
    warning = seen_images_warning(args.model, args.data, args.seed, given=splits.given, split=args.split)
    if warning is not None and args.split in ("validation", "test"):
        print(f"warning: {warning}", file=sys.stderr)

    for doubt in doubts_of(splits["test" if args.split == "all" else args.split], processor):
        print(f"warning: {doubt}", file=sys.stderr)

    # 3. Likelihood, classification, codecs, calibration; samples.
    evaluation = evaluate_model(
        model,
        processor,
        splits,
        split=args.split,
        max_images=args.max_images,
        num_draws=args.draws,
        num_samples=args.samples,
        temperature=args.temperature,
        guidance_scale=args.guidance_scale,
        prior=args.prior,
        seed=args.seed,
        batch_size=args.batch_size,
        allow_resize=args.resize or was_trained_on(args.model, args.data),
    )

    # 4. JSON and figure.
    report = {"model": args.model, "data": args.data, **evaluation.report}
    Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    figure = Path(args.output).with_suffix(".png")
    title = f"{Path(args.model).name} on {report['num_images']} images of {Path(args.data).name} ({args.split}): "
    title += f"{report['nats_per_image']:.2f} ± {report['nats_per_image_stderr']:.2f} nats per image given the class"
    save_figure(evaluation_figure(report, title, evaluation.examples, evaluation.nearest), figure, args.figures)

    # 5. Table.
    print(format_table(report))
    print(f"-> {args.output}, {figure}")


if __name__ == "__main__":
    run_main(main)
