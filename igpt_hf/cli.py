"""The command `igpt`: each of its commands runs one of the scripts, from a checkout or from the installed package.

    igpt train --data path/to/folder --output_dir runs/mine
    igpt train --num_processes 2 -- --data path/to/folder     # before `--`: flags of accelerate's launcher

Nothing heavy is imported before a script runs: some set environment variables that torch reads when it is loaded.
"""

import difflib
import runpy
import subprocess
import sys
from pathlib import Path

from . import __version__


# Command -> its script, and what `igpt --help` says.
COMMANDS = {
    "train": ("train.py", "train a model on images"),
    "sample": ("sample.py", "draw images from a trained model, or complete half an image"),
    "evaluate": ("evaluate.py", "exact likelihoods, classification, and the quality of samples"),
    "probe": ("probe.py", "what each layer knows about the classes"),
    "push": ("push_to_hub.py", "upload a trained model to the Hugging Face Hub"),
    "app": ("app.py", "a trained model in the browser"),
    "export onnx": ("export_onnx.py", "one decoding step as an ONNX file"),
    "export demo": ("export_demo.py", "a page that draws in the browser alone"),
}
HELP = ("-h", "--help")


def script_path(name: str) -> Path:
    """Where a script lies: inside the installed package, or beside it in the repository."""
    here = Path(__file__).resolve().parent
    return next(path for path in (here / "scripts" / name, here.parent / "scripts" / name) if path.is_file())


def usage(group: str = "") -> str:
    """The help of `igpt`, or of a group of its commands (`igpt export`)."""
    names = [name for name in COMMANDS if name.startswith(group)]
    lines = [f"usage: igpt {group or 'COMMAND'} ...", "", *(f"  {name:12} {COMMANDS[name][1]}" for name in names)]
    return "\n".join([*lines, "", "igpt COMMAND --help lists its flags, igpt --version tells the version."])


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
    meant = f" Did you mean {close[0]!r}?" if close else ""
    print(f"error: igpt has no command {given!r}.{meant} igpt --help lists all.", file=sys.stderr)
    sys.exit(2)


def run_script(script: Path, argv: list[str]):
    """Run a script in this process, as if it had been started by itself."""
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")


def launch(script: Path, argv: list[str]):
    """Run a script through accelerate's launcher, and end with the exit status that the script ended with."""
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else ([], argv)
    if set(HELP) & set(flags):
        return run_script(script, flags)
    from accelerate.commands.launch import main as launch_main

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
        try:
            run(script_path(COMMANDS[name][0]), flags)
        except KeyboardInterrupt:
            sys.exit(130)  # as a shell has it: 128 and the number of the signal


if __name__ == "__main__":
    main()
