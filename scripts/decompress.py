"""Decompress a file of igpt compress: the same images, each pixel, or an error.

    igpt decompress runs/hoda digits.igc --output digits

Writes PNG files in a folder per class, DIGITS/CLASS/00000.png; the number is the image's place in the file. Images
without a class lie in the folder itself. Needs the model that compressed them, and constriction:
pip install 'igpt_hf[codec]'. In Python: `igpt_hf.codec.coder.decompress`.
"""

from pathlib import Path

from igpt_hf import DataError
from igpt_hf.cli import command_parser, hide_library_bars, run_main
from igpt_hf.codec.coder import decompress, import_range_coder
from igpt_hf.codec.images import check_folder, write_images
from igpt_hf.distributed import use_all_cores
from igpt_hf.hub.loading import load_pretrained


def parse_arguments():
    parser = command_parser("decompress", __doc__)
    parser.add_argument("model", help="folder of the model that compressed the file, or its id on the Hub")
    parser.add_argument("file", type=Path, help="what igpt compress wrote")
    parser.add_argument("--output", default="images", help="a new folder for the images")
    args = parser.parse_args()
    check_folder(args.output)
    return args


def main():
    args = parse_arguments()
    import_range_coder()  # before any work
    hide_library_bars()
    use_all_cores()
    data = args.file.read_bytes()
    model, processor = load_pretrained(args.model)
    try:
        ids = decompress(model, data)
    except DataError as error:
        raise DataError(f"{args.file}: {error}") from error
    write_images(model.config, processor, ids, args.output)
    print(f"{len(ids):,} images -> {args.output}")


if __name__ == "__main__":
    run_main(main)
