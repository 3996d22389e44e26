"""Sample images from a trained Image GPT.

    igpt sample --labels 0 0 7                                         # from the model that comes with the package
    igpt sample runs/synthetic                                         # ten images of any class
    igpt sample runs/synthetic --labels 0 0 7 --guidance_scale 1.5     # of these classes
    igpt sample runs/synthetic --complete drawing.png --keep_rows 14   # the lower half anew, ten times
    igpt sample runs/synthetic --complete drawing.png --mask mask.png  # what is white in the mask anew
    igpt sample runs/synthetic --num 1000 --npz samples.npz            # arrays for further work

Writes a figure of all samples: their classes above the columns, what was given before each row of completions. With
--npz, also the arrays `images` (n, height, width; 0 and 1), `labels` (n; -1 for any class), `ids` (n, 1 + tokens) and
`nats` (n; -ln p of the whole image given its prompt).
"""

import argparse
import contextlib
import sys

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import set_seed

from igpt_hf import IGPTError
from igpt_hf.cli import (
    IMAGE_KINDS,
    add_model_argument,
    check_output,
    check_positive,
    check_sampling,
    check_seed,
    command_parser,
    hide_library_bars,
    run_main,
)
from igpt_hf.hub.bundled import SURE
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.model.masks import transparent_pixels
from igpt_hf.plots import UNKNOWN, ImageGrid, class_names


SCALE = 3  # screen pixels per pixel
LETTER = 12  # screen pixels of a letter above a column
LONGEST_ROW = 32  # images


def parse_arguments():
    parser = command_parser("sample", __doc__)
    add_model_argument(parser)
    parser.add_argument(
        "--labels",
        nargs="+",
        help="class names or indices, one image each; default: any class, and without a model one of each class",
    )
    parser.add_argument("--num", type=int, help="how many images in all; labels are repeated in order (default 10)")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1: more typical images")
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="sample from the most likely tokens of this total probability"
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="above 1: more typical of their class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--min_posterior",
        type=float,
        help="sample again, up to ten times, where the model's own Bayes rule gives the class less than this",
    )
    parser.add_argument("--complete", metavar="IMAGE", help="keep the upper part of this image, or what --mask says")
    parser.add_argument("--keep_rows", type=int, help="rows of pixels to keep (default: half the image)")
    parser.add_argument(
        "--mask",
        help="an image of the same size, white where pixels are unknown; alpha: the transparent pixels are",
    )
    parser.add_argument("--num_particles", type=int, help="with --mask: more are slower and nearer to exact")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--output", default="samples.png", help="the figure of all samples")
    parser.add_argument(
        "--figures",
        default="png",
        choices=["png", "pdf", "svg"],
        help="write the figure also as this",
    )
    parser.add_argument("--npz", help="the samples as arrays")
    args = parser.parse_args()
    check_positive(args, "num", "num_particles", "batch_size")
    if args.npz is not None and not args.npz.endswith(".npz"):
        args.npz += ".npz"  # as numpy would name it
    reads = [args.complete, args.mask]
    check_output(args.output, suffixes=IMAGE_KINDS, reads=reads)
    check_output(args.npz, "--npz", suffixes=[".npz"], reads=reads)
    check_seed(args)
    check_sampling(args)
    if not 0 < args.top_p <= 1:
        raise IGPTError(f"--top_p must be above 0 and at most 1, got {args.top_p}.")
    if args.min_posterior is not None and not 0 <= args.min_posterior <= 1:
        raise IGPTError(f"--min_posterior is a probability, got {args.min_posterior}.")
    if args.keep_rows is not None and args.complete is None:
        raise IGPTError("--keep_rows says how much of an image is kept: pass --complete IMAGE too.")
    if args.mask is not None and args.complete is None:
        raise IGPTError(f"--mask {args.mask} says what of an image is unknown: pass --complete IMAGE too.")
    if args.mask is not None and args.keep_rows is not None:
        raise IGPTError("--mask and --keep_rows both say how much of the image is kept: leave out one of the two.")
    if args.num_particles is not None and args.mask is None:
        raise IGPTError("--num_particles goes with --mask.")
    if args.labels is None and not is_first_look(args):
        for name, unused in (("guidance_scale", 1.0), ("min_posterior", None)):
            if getattr(args, name) != unused:
                print(f"warning: --{name} has no effect without --labels.", file=sys.stderr)
    return args


def is_first_look(args: argparse.Namespace) -> bool:
    """Whether neither a model nor an image nor a class is named: then one image of each class is drawn."""
    return args.model is None and args.complete is None and args.labels is None


def class_index(name: str, config) -> int:
    """Index of a class, given by its name or, where no class has that name, by its index."""
    if name not in config.class_names and name in map(str, range(config.num_labels)):
        return int(name)
    try:
        return config.label_index(name)
    except ValueError as error:
        raise IGPTError(f"--labels {name}: {error}") from error


def open_image(path: str) -> Image.Image:
    """Open an image of a usual format and size."""
    from igpt_hf.data.decoding import decode_image  # takes a second

    with open(path, "rb"):  # an error of the system names the file
        return decode_image({"path": path, "bytes": None})


def read_upload(processor, path: str) -> Image.Image:
    """Read the image to complete, as binary pixels."""
    with named("--complete", path):
        return processor.fit_upload(open_image(path))


@contextlib.contextmanager
def named(flag: str, path: str):
    """Name the flag and the file in what goes wrong."""
    try:
        yield
    except OSError as error:  # of the system, which names the file itself, or of Pillow
        raise IGPTError(f"{flag} {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise IGPTError(f"{flag} {path}: {error}") from error


def given_part(args, processor) -> dict:
    """What the processor's `prompt` is told about the image that is to be completed."""
    if args.complete is None:
        return {}
    if args.mask is None:
        keep_rows = processor.half_rows if args.keep_rows is None else args.keep_rows
        return {"images": read_upload(processor, args.complete), "keep_rows": keep_rows}
    with named("--complete", args.complete):
        image = open_image(args.complete)
        mask = transparent_pixels(image) if args.mask == "alpha" else None
    if mask is None:
        with named("--mask", args.mask):
            mask = open_image(args.mask)
    # Not cropped: its pixels stay under those of the mask.
    return {"images": processor.binarize_upload(image, mask), "mask": mask}


def given_picture(processor, given: dict) -> Image.Image:
    """What the model is given of the image that is completed; what is unknown is gray."""
    if "mask" in given:
        prompt = processor.prompt(**given)
        pixels, known = (processor.decode_pixels(prompt[name])[0] for name in ("known_tokens", "known_masks"))
        return Image.fromarray(np.where(known, 255 * pixels, UNKNOWN).astype(np.uint8))
    picture = processor.decode(processor.tokenize(given["images"]))[0]
    picture.paste(UNKNOWN, (0, given["keep_rows"], picture.width, picture.height))
    return picture


def sample_grid(images: list, names: list[str], picture: Image.Image | None) -> ImageGrid:
    """The figure of all samples, with what was given before each row.

    Args:
        images: The samples, whose classes are `names` in turn.
        names: Of classes, as figures show them: above the columns, a single one as the title.
        picture: What was given.
    """
    columns, headers = 10, {}
    if 0 < len(names) <= LONGEST_ROW:
        columns = max(1, 10 // len(names)) * len(names)
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    if 1 < len(names) <= LONGEST_ROW:
        headers = {column: names[column % len(names)] for column in range(len(rows[0]))}
    if picture is not None:
        rows = [[picture, *row] for row in rows]
        headers = {0: "given"} | {column + 1: name for column, name in headers.items()}
    return ImageGrid(rows, title=f"Class {names[0]}" if len(names) == 1 else None, headers=headers, scale=SCALE)


def main():
    args = parse_arguments()
    hide_library_bars()
    model, processor = load_pretrained(args.model)
    labels = None if args.labels is None else [class_index(name, model.config) for name in args.labels]
    if is_first_look(args):
        labels = list(range(model.config.num_labels))
        args.min_posterior = SURE if args.min_posterior is None else args.min_posterior
    num = args.num if args.num is not None else len(labels or [0] * 10)
    given = given_part(args, processor)
    settings = {name: getattr(args, name) for name in ("temperature", "top_p", "guidance_scale")}
    settings |= {"num_particles": args.num_particles, "min_posterior": args.min_posterior}
    asked = labels or []
    labels = None if labels is None else np.resize(asked, num).tolist()  # in turn

    set_seed(args.seed)
    batches = []
    for start in tqdm(range(0, num, args.batch_size), desc="Sampling", delay=2, disable=None):
        count = min(args.batch_size, num - start)
        prompt = processor.prompt(class_labels=None if labels is None else labels[start : start + count], **given)
        prompt = {name: ids.expand(count, -1) for name, ids in prompt.items()}  # one start token serves all
        batches.append(model.generate(**prompt, **settings))
    ids = torch.cat(batches)

    picture = given_picture(processor, given) if given else None
    names = class_names(model.config, longest=max(2, SCALE * processor.image_size // LETTER))
    grid = sample_grid(processor.decode(ids), [names[label] for label in asked[:num]], picture)
    grid.save(args.output, args.figures)
    print(f"{num} images -> {args.output}")
    if args.npz is not None:
        nats = -model.log_likelihood(ids)
        shown = np.full(num, -1) if labels is None else np.array(labels)
        np.savez_compressed(
            args.npz, images=processor.decode_pixels(ids), labels=shown, ids=ids.numpy(), nats=nats.numpy()
        )
        print(f"arrays -> {args.npz}; {nats.mean():.2f} nats/image")


if __name__ == "__main__":
    run_main(main)
