"""Look at a data set before training: what it holds, how it becomes binary, and what the model would see.

    igpt data path/to/folder                       # sizes, classes, duplicates; data.png
    igpt data digits.cdb --output hoda.png
    igpt data path/to/folder --threshold local     # the flags of igpt train that change what the model sees

Writes a figure of originals beside what the model sees. igpt train writes the same before its first step.
"""

import sys
from collections import Counter
from functools import partial

from igpt_hf import IGPTImageProcessor, load_splits
from igpt_hf.cli import (
    IMAGE_KINDS,
    add_reading_arguments,
    check_output,
    check_seed,
    command_parser,
    hide_library_bars,
    run_main,
)
from igpt_hf.data.inspection import count_images, image_facts, inspect_images, parse_threshold, sample_images
from igpt_hf.data.splits import describe_splits


def parse_arguments():
    parser = command_parser("data", __doc__)
    parser.add_argument("data", metavar="SOURCE", help="as --data of igpt train")
    add_reading_arguments(parser)
    parser.add_argument("--splits", default="auto", choices=["auto", "given", "random"], help="as in igpt train")
    parser.add_argument("--max_images", type=int, help="look at a random, stratified subset of at most this many")
    parser.add_argument("--seed", type=int, default=42, help="of the split and the subset")
    parser.add_argument("--image_size", type=int, default=28, help="pixels of the model's images")
    parser.add_argument("--threshold", type=parse_threshold, default="auto", help="a gray level in (0, 1], or local")
    parser.add_argument("--invert", default="auto", choices=["auto", "never", "always"])
    parser.add_argument(
        "--ink", default="auto", choices=["auto", "dark", "light", "opacity"], help="what becomes white"
    )
    parser.add_argument("--widen_strokes", choices=["true", "false"], help="widen strokes thinner than a pixel")
    parser.add_argument("--margin", type=int, help="pixels kept free around tight crops; default: image_size / 14")
    parser.add_argument("--output", default="data.png", help="the figure")
    args = parser.parse_args()
    check_output(args.output, suffixes=IMAGE_KINDS, reads=[args.data])
    check_seed(args)
    return args


def most_common(counts: Counter, number: int = 5) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(number))
    return shown + (f" and {len(counts) - number} others" if len(counts) > number else "")


def main():
    args = parse_arguments()
    hide_library_bars()
    names = ("seed", "image_column", "label_column", "labels_from", "splits", "max_images", "skip_bad_images")
    splits = load_splits(args.data, **{name: getattr(args, name) for name in names}, describe=image_facts)
    processor = IGPTImageProcessor(
        args.image_size,
        threshold=args.threshold,
        invert=args.invert,
        margin=args.image_size // 14 if args.margin is None else args.margin,
        ink=args.ink,
        widen_strokes=None if args.widen_strokes is None else args.widen_strokes == "true",
    )

    print(args.data)
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    print(f"splits     {sizes}; {describe_splits(splits.given, args.seed)}")
    class_names = splits["train"].features["label"].names
    labels = Counter(class_names[label] for split in splits.values() for label in split["label"][:])
    if len(class_names) <= 20:  # as they are numbered
        shown = ", ".join(f"{name} ({labels[name]:,})" for name in class_names)
    else:
        shown = most_common(labels, 20)
    print(f"classes    {len(class_names)}: {shown}")
    census = count_images(splits.descriptions)
    print("sizes      " + most_common(Counter({"{}x{}".format(*size): n for size, n in census.sizes.items()})))
    print("modes      " + most_common(census.modes))
    print(f"duplicates {census.repeated:,} within a split, {census.across:,} in an earlier split too")

    num_images = sum(len(split) for split in splits.values())
    inspection = inspect_images(sample_images(splits["train"]), processor, num_images)
    inspection.report(print, partial(print, file=sys.stderr))
    inspection.sheet.save(args.output)
    print(f"originals beside what the model sees -> {args.output}")
    inspection.check()


if __name__ == "__main__":
    run_main(main)
