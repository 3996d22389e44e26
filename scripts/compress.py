"""Compress images losslessly with a trained Image GPT: about -log2 p bits each, far fewer than PNG takes.

    igpt compress runs/hoda digits.cdb --output digits.igc        # any source that igpt train takes, classes included
    igpt compress runs/hoda scans/ one.png --output scans.igc     # files and folders of images
    igpt decompress runs/hoda digits.igc --output digits

Kept are the images as the model sees them, black and white at its size, each pixel exactly, and their classes. Only
the same model reads the file. Needs constriction: pip install 'igpt_hf[codec]'. In Python:
`igpt_hf.codec.coder.compress`.
"""

from pathlib import Path

from igpt_hf.cli import (
    add_model_argument,
    add_reading_arguments,
    check_output,
    check_positive,
    command_parser,
    hide_library_bars,
    run_main,
)
from igpt_hf.codec.coder import BATCH_SIZE, compress, import_range_coder
from igpt_hf.codec.images import read_images
from igpt_hf.data.sources.parts import ReadOptions
from igpt_hf.distributed import use_all_cores
from igpt_hf.hub.loading import load_pretrained


def parse_arguments():
    parser = command_parser("compress", __doc__)
    add_model_argument(parser, is_optional=False)
    parser.add_argument("images", nargs="+", help="image files, and sources as --data of igpt train")
    add_reading_arguments(parser)
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, help="images in a step; decompressing needs the same memory"
    )
    parser.add_argument("--output", default="images.igc", help="the compressed file")
    args = parser.parse_args()
    check_positive(args, "batch_size")
    check_output(args.output, reads=args.images, replaces=False)  # it may be the only copy of its images
    return args


def main():
    args = parse_arguments()
    import_range_coder()  # before any work
    hide_library_bars()
    use_all_cores()
    model, processor = load_pretrained(args.model)
    options = ReadOptions(args.image_column, args.label_column, args.labels_from)
    input_ids = read_images(model, processor, args.images, options, args.skip_bad_images)

    data = compress(model, input_ids, args.batch_size)
    partial = Path(f"{args.output}.partial")  # until it is whole
    partial.write_bytes(data)
    partial.replace(args.output)

    bits, size = 8 * len(data) / len(input_ids), model.config.image_size
    print(f"{len(input_ids):,} images, {size}x{size} black and white -> {args.output}")
    print(f"{len(data):,} bytes, {bits:.1f} bits/image, {bits / size**2:.4f} bits/pixel")


if __name__ == "__main__":
    run_main(main)
