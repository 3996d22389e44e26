"""The command `igpt`: each of its commands runs one of the scripts, from a checkout or from the installed package.

    igpt train --data path/to/folder --output_dir runs/mine
    igpt train --num_processes 2 -- --data path/to/folder     # before `--`: flags of accelerate's launcher

Nothing heavy is imported before a script runs: some set environment variables that torch reads when it is loaded.
"""

import argparse
import difflib
import gc
import io
import logging
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from . import __version__
from .errors import IGPTError
from .help import CommandParser, print_help
from .hub.bundled import DEFAULT_MODEL, bundled
from .training.file_names import MANIFEST, MODEL_FILES, OF_A_RUN


# Command -> its script, and what `igpt --help` says.
COMMANDS = {
    "train": ("train.py", "train a model on images"),
    "sample": ("sample.py", "sample images from a trained model, or complete half an image"),
    "evaluate": ("evaluate.py", "exact likelihoods, classification and sample quality"),
    "data": ("data.py", "look at a data set: what it holds, and what the model would see"),
    "probe": ("probe.py", "linear probes: class accuracy from each layer's features"),
    "score": ("score.py", "nats, class and percentile of image files, as a table"),
    "compress": ("compress.py", "compress images losslessly with a model"),
    "decompress": ("decompress.py", "decompress them, with the same model"),
    "push": ("push_to_hub.py", "upload a trained model to the Hugging Face Hub"),
    "app": ("app.py", "try a trained model in the browser"),
    "export onnx": ("export_onnx.py", "export one decoding step as an ONNX file"),
    "export demo": ("export_demo.py", "export a page that samples in the browser, without a server"),
}
ALSO_KNOWN_AS = {"complete": "sample --complete", "generate": "sample", "eval": "evaluate", "demo": "export demo"}
HELP = ("-h", "--help")
IMAGE_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf", ".svg")  # to be written
JSON_KINDS = (".json", ".txt", "")
EXTRAS = {"gradio": "demo", "constriction": "codec", "onnx": "onnx", "onnxscript": "onnx"}  # of pyproject.toml
EXTRAS |= dict.fromkeys(["torchmetrics", "prdc", "sklearn"], "eval")


def script_path(name: str) -> Path:
    """Path of a script: inside the installed package, or beside it in the repository."""
    here = Path(__file__).resolve().parent
    return next(path for path in (here / "scripts" / name, here.parent / "scripts" / name) if path.is_file())


def usage(group: str = "") -> str:
    """The help of `igpt`, or of a group of its commands (`igpt export`)."""
    names = [name for name in COMMANDS if name.startswith(group)]
    lines = [f"usage: igpt {group or 'COMMAND'} ...", "", *(f"  {name:12} {COMMANDS[name][1]}" for name in names)]
    return "\n".join([*lines, "", "igpt COMMAND --help lists its flags, igpt --version prints the version."])


def find_command(argv: list[str]) -> tuple[str, list[str]]:
    """Split a command line into the command, of one word or two, and its flags.

    Raises:
        SystemExit: There is no such command.
    """
    for words in (1, 2):
        name = " ".join(argv[:words])
        if name in COMMANDS:
            return name, argv[words:]
    is_group = any(name.startswith(f"{argv[0]} ") for name in COMMANDS)
    given = " ".join(argv[: 2 if is_group else 1])
    close = difflib.get_close_matches(given, [*COMMANDS, *{name.split()[0] for name in COMMANDS}], n=1)
    name = ALSO_KNOWN_AS.get(given) or next(iter(close), None)
    meant = "" if name is None else f" Did you mean {name!r}?"
    print(f"error: igpt has no command {given!r}.{meant} igpt --help lists all.", file=sys.stderr)
    sys.exit(2)


def run_script(script: Path, argv: list[str]):
    """Run a script in this process, as if it had been started by itself.

    Its imports make a million objects, all of which stay: garbage is looked for from `run_main` on.
    """
    sys.argv = [str(script), *argv]
    gc.disable()
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        gc.enable()


def launch(script: Path, argv: list[str]):
    """Run a script through accelerate's launcher, and end with the exit status that the script ended with."""
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else ([], argv)
    if "--help-all" in flags:
        return run_script(script, flags)
    from accelerate.commands.launch import main as launch_main

    # It lists its defaults as a warning, at each start, and whatever the script says next.
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    sys.argv = ["igpt train", *own, str(script), *flags]
    try:
        launch_main()
    except subprocess.CalledProcessError as failure:  # the script has said why; below zero: the signal that ended it
        sys.exit(failure.returncode if failure.returncode > 0 else 128 - failure.returncode)


def main():
    argv = sys.argv[1:]
    if not argv or argv[0] in HELP:
        print(usage())
    elif argv[0] == "--version":
        print(f"igpt {__version__}")
    elif argv[0] == "export" and (len(argv) == 1 or argv[1] in HELP):
        print(usage("export"))
    else:
        name, flags = find_command(argv)
        run = launch if name == "train" else run_script
        if set(HELP) & set(flags):
            return print_help(name)
        try:
            run(script_path(COMMANDS[name][0]), flags)
        except KeyboardInterrupt:
            sys.exit(130)  # as a shell has it: 128 and the number of the signal


# --- what the scripts share -----------------------------------------------------------------------------------------


def run_main(main: Callable[[], Any]):
    """Call a script's `main`; what a user can fix becomes one line on stderr and exit status 1.

    Besides `IGPTError`: the model and its processor raise ValueError, files OSError, the Trainer FloatingPointError at
    a NaN or infinite loss, and a missing extra ModuleNotFoundError. Numbers out of range end in OverflowError or
    MemoryError, and optimizers of other packages in ImportError.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of classes that a pipe on Windows cannot take
    gc.freeze()  # what was imported is no garbage: looking through it takes seconds, most of them at the end
    gc.enable()
    try:
        main()
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}", file=sys.stderr)
        sys.exit(130)  # as a shell has it: 128 and the number of the signal
    except PackageNotFoundError as error:  # transformers looks for a package before it imports it
        sys.exit(f"error: {str(error.name).strip('. ')}. Install it, or leave out what needs it.")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}. {_how_to_install(error.name)}")
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        sys.exit(141)  # as a shell has it: 128 and the number of the signal
    except (ValueError, OSError, FloatingPointError, OverflowError, MemoryError, ImportError) as error:
        sys.exit(f"error: {error}")


def _how_to_install(module: str | None) -> str:
    package = (module or "").partition(".")[0]
    if package in EXTRAS:
        extra = EXTRAS[package]
        return f"`make install` brings it, or pip install 'igpt_hf[{extra}]' (checkout: '.[{extra}]')."
    return f"Run pip install {package}, or leave out what needs it." if package else "Install it."


def hide_library_bars():
    """Hide the bars that libraries show for each file and, where stderr is not a terminal, those for data sets too."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if sys.stderr.isatty():
        return
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    else:  # it takes a second to import, and some commands do without it
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def command_parser(command: str, description: str) -> CommandParser:
    """The parser of `igpt COMMAND`; the description keeps its line breaks."""
    return CommandParser(
        prog=f"igpt {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_model_argument(parser: argparse.ArgumentParser, is_optional: bool = True):
    """Add the model; where it may be left out, the package's own takes its place."""
    which = f"folder of a trained model, one in the package ({', '.join(bundled())}), or an id on the Hub"
    if is_optional:
        parser.add_argument("model", nargs="?", help=f"{which}; default: {DEFAULT_MODEL}")
    else:
        parser.add_argument("model", help=which)


def add_reading_arguments(parser: argparse.ArgumentParser):
    """Add the flags that say what of a source is image and class, and what to do with images that cannot be read."""
    parser.add_argument("--image_column", default="image", help="the column, or the array of a file, of images")
    parser.add_argument("--label_column", default="label", help="the column, or the array of a file, of classes")
    parser.add_argument("--labels_from", choices=["parent", "top"], help="the class folder, of folders in folders")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out images that cannot be read")


def add_data_arguments(parser: argparse.ArgumentParser):
    """Add the flags of an evaluation's data: which images, how they are split, and whether they may be resized."""
    parser.add_argument("--data", default="synthetic", help="as in igpt train: a folder, archive, file, id, ...")
    add_reading_arguments(parser)
    parser.add_argument("--splits", default="auto", choices=["auto", "given", "random"], help="as in igpt train")
    parser.add_argument("--resize", action="store_true", help="resize images of another size to the model's")
    parser.add_argument("--seed", type=int, default=42, help="of the split (the training's --split_seed) and all else")
    parser.add_argument("--batch_size", type=int, default=128)


def split_arguments(args: argparse.Namespace) -> dict:
    """The arguments of `load_splits` among the flags of `add_data_arguments`."""
    names = ("seed", "image_column", "label_column", "labels_from", "splits", "skip_bad_images")
    return {"source": args.data, **{name: getattr(args, name) for name in names}}


def check_positive(args: argparse.Namespace, *names: str):
    """Refuse flags below 1.

    Raises:
        IGPTError: It names the flag and its value.
    """
    for name in names:
        if (value := getattr(args, name)) is not None and value < 1:
            raise IGPTError(f"--{name} must be at least 1, got {value}.")


def check_seed(args: argparse.Namespace):
    """Refuse a seed that numpy does not take.

    Raises:
        IGPTError: It names the flag and its value.
    """
    if not 0 <= args.seed < 2**32:
        raise IGPTError(f"--seed must be from 0 to {2**32 - 1}, got {args.seed}.")


def check_sampling(args: argparse.Namespace):
    """Refuse a temperature or a guidance scale that no sampling has.

    Raises:
        IGPTError: It names the flag and its value.
    """
    if not 0 < args.temperature < math.inf:
        raise IGPTError(f"--temperature must be positive, got {args.temperature}.")
    if not 0 <= args.guidance_scale < math.inf:
        raise IGPTError(f"--guidance_scale must be a number from 0 on, got {args.guidance_scale}.")


def check_output(
    path: str | Path | None,
    flag: str = "--output",
    *,
    suffixes: Sequence[str] | None = None,
    reads: Iterable[str | Path | None] = (),
    has_figure: bool = False,
    replaces: bool = True,
):
    """Refuse an output file that cannot be written, or would cost what it is not meant to cost, before any work.

    Args:
        path: Of the file; None: there is none.
        flag: That names it.
        suffixes: Those that it may have, lower case; None: any.
        reads: The files, folders and sources that the command reads.
        has_figure: A figure goes beside it, under the same name with .png.
        replaces: Whether it may take the place of an earlier file; an empty one always may be filled.

    Raises:
        IGPTError: It names the flag, the file and the remedy.
    """
    if path is None:
        return
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise IGPTError(f"the folder of {flag} {path} does not exist.")
    if path.is_dir():
        raise IGPTError(f"{flag} {path} is a folder: name a file in it.")
    if has_figure and (suffix := path.suffix.lower()) in (".png", ".pdf", ".svg"):
        raise IGPTError(f"{flag} {path} is the JSON file; the figure beside it gets its name with {suffix}.")
    if suffixes is not None and path.suffix.lower() not in suffixes:
        kinds = ", ".join(filter(None, suffixes))
        raise IGPTError(f"{flag} {path} has no suffix of a kind that can be written: {kinds}.")
    if not replaces and path.exists() and path.stat().st_size > 0:
        raise IGPTError(f"{flag} {path} exists: name another file, or delete it.")
    for file in [path, *([path.with_suffix(".png")] if has_figure else [])]:
        _check_spares(file, flag, reads)


def _check_spares(file: Path, flag: str, reads: Iterable[str | Path | None]):
    """Refuse to overwrite a model's own files and what is read, and to put a picture among the images of a folder."""
    if file.name in (*MODEL_FILES, *OF_A_RUN, MANIFEST):
        raise IGPTError(f"{flag} {file} has the name of a file of a trained model: name another.")
    sources = [str(source) for source in reads if source is not None]
    parts = [part.strip() for source in sources for part in [source, *source.split(",")]]  # as load_splits has them
    for part in filter(os.path.exists, map(os.path.expanduser, parts)):
        if file.exists() and file.samefile(part):
            raise IGPTError(f"{flag} {file} is what the command reads: name another file.")
        if Path(part).resolve() in file.resolve().parents and file.suffix.lower() in IMAGE_KINDS:
            raise IGPTError(
                f"{flag} {file} would be one of the images in {part}, which the command reads: name a file elsewhere."
            )


if __name__ == "__main__":
    main()
