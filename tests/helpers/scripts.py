"""Run commands as a user does, and read what they leave behind."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from .paths import SCRIPTS, UTILS


LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", str(SCRIPTS / "train.py")]
# What a training run leaves in its folder.
FILES = {"model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json", "README.md"}
FILES |= {"all_results.json", "loss_curve.png", "samples.png", "completions.png", "data.png"}


def run(*command, check: bool = True, **options) -> subprocess.CompletedProcess:
    """Run a command in a process of its own; with `check`, it must succeed."""
    options = {"capture_output": True, "text": True, "timeout": 400} | options
    done = subprocess.run([str(part) for part in command], **options)
    assert not check or done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done


def run_python(*argv, **options) -> subprocess.CompletedProcess:
    """Run a script, or code after "-c", by this Python."""
    return run(sys.executable, *argv, **options)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load_utility(name: str):
    """A script of utils/ as a module."""
    spec = importlib.util.spec_from_file_location(name, UTILS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
