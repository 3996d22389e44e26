"""The command `igpt`: each of its commands is a script, with its flags, its messages and its exit status."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import transformers

from helpers.paths import ROOT
from helpers.scripts import load_utility
from igpt_hf import IGPTError, __version__, cli
from igpt_hf.help import TEXTS
from igpt_hf.training.arguments import make_parser


make_help = load_utility("make_help")


@pytest.fixture
def igpt(monkeypatch):
    """Run `igpt` with these words; returns its exit status, or what it ends with."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["igpt", *map(str, argv)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        return 0

    return run


@pytest.fixture
def launched(monkeypatch):
    """What accelerate's launcher is asked for, in place of a training; it ends with the exit status that is put in."""
    asked = {"status": 0}

    def main():
        asked["argv"] = sys.argv[1:]
        if asked["status"]:
            raise subprocess.CalledProcessError(asked["status"], "train.py")

    monkeypatch.setattr("accelerate.commands.launch.main", main)
    return asked


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(flag):
    code = f"import sys; sys.argv = ['igpt', {flag!r}]\nfrom igpt_hf.cli import main\nmain()\n"
    code += "print([name for name in ('torch', 'transformers', 'numpy', 'accelerate') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert (
        f"igpt {__version__}" in lines
        if flag == "--version"
        else all(any(line.split()[: len(name.split())] == name.split() for line in lines) for name in cli.COMMANDS)
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_names_it_as_it_is_typed(igpt, capsys, name):
    assert igpt(*name.split(), "--help") == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: igpt {name} ") and "scripts/" not in output


def test_export_alone_lists_what_can_be_exported(igpt, capsys):
    assert igpt("export") == 0
    output = capsys.readouterr().out
    assert "export onnx" in output and "export demo" in output and "  train" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smaple", "x"], "error: igpt has no command 'smaple'. Did you mean 'sample'?"),
        (["complete", "x.png"], "error: igpt has no command 'complete'. Did you mean 'sample --complete'?"),
        (["exprt"], "error: igpt has no command 'exprt'. Did you mean 'export'?"),
        (["export", "onx"], "error: igpt has no command 'export onx'. Did you mean 'export onnx'?"),
        (["--labels"], "error: igpt has no command '--labels'."),
    ],
)
def test_an_unknown_command_is_one_line_with_a_suggestion(igpt, capsys, words, message):
    assert igpt(*words) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err == f"{message} igpt --help lists all.\n"


def test_a_command_ends_as_its_script_does(igpt, tmp_path):
    assert igpt("sample", tmp_path / "nowhere", "--num", "0").startswith("error: ")
    assert igpt("sample", "--no_such_flag") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sample", "m", "--labls", "3"],
            "error: unknown flag --labls 3; did you mean --labels? igpt sample --help",
        ),
        (["sample", "m", "--num", "many"], "error: argument --num: invalid int value: 'many'. igpt sample --help"),
        (["train", "--dtaa", "x"], "error: unknown flag --dtaa x; did you mean --data? igpt train --help"),
        (["train", "--seed", "x"], "error: argument --seed: invalid int value: 'x'. igpt train --help"),
    ],
)
def test_a_wrong_flag_or_value_is_one_line(monkeypatch, capsys, words, message):
    command, *flags = words
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(flags) if command == "train" else cli.run_script(cli.script_path("sample.py"), flags)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{message} lists the flags.\n"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays help out in another way")
def test_the_texts_of_help_are_what_the_parsers_say(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(make_help.WIDTH))
    written = {name: TEXTS.joinpath(f"{name.replace(' ', '_')}.txt").read_text() for name in cli.COMMANDS}
    said = make_help.help_texts()
    if f"transformers=={transformers.__version__}\n" not in (ROOT / "constraints.txt").read_text():
        del said["train"], written["train"]  # the Trainer's flags have the words of another version
    assert said == written


def test_train_runs_through_the_launcher_whose_own_flags_come_first(igpt, launched):
    script = str(cli.script_path("train.py"))
    assert igpt("train", "--data", "x", "--max_steps", "2") == 0
    assert launched["argv"] == [script, "--data", "x", "--max_steps", "2"]
    assert igpt("train", "--num_processes", "2", "--", "--data", "x") == 0
    assert launched["argv"] == ["--num_processes", "2", script, "--data", "x"]


@pytest.mark.parametrize(("status", "expected"), [(1, 1), (3, 3), (-15, 143)])
def test_train_ends_with_the_status_of_the_training(igpt, launched, status, expected):
    launched["status"] = status
    assert igpt("train") == expected


# --- outputs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    """A folder of images, and a model's card, where a user stands."""
    monkeypatch.chdir(tmp_path)
    for name in ("drawings/a.png", "README.md", "report.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("mine")
    return Path("drawings")


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("drawings/a.png", {"reads": ["drawings/a.png"]}, "--output drawings/a.png is what the command reads"),
        ("./drawings/../drawings/a.png", {"reads": [None, "b.png,drawings/a.png"]}, "is what the command reads"),
        ("drawings/new.png", {"reads": ["drawings"]}, "would be one of the images in drawings"),
        ("drawings/r.json", {"reads": ["drawings"], "has_figure": True}, "r.png would be one of the images in draw"),
        ("report.json", {"reads": ["report.png"], "has_figure": True}, "report.png is what the command reads"),
        ("README.md", {}, "README.md has the name of a file of a trained model"),
        ("config.json", {"has_figure": True}, "config.json has the name of a file of a trained model"),
        ("drawings/a.png", {"replaces": False}, "exists: name another file, or delete it"),
        ("table.png", {"suffixes": (".csv", "")}, "no suffix of a kind that can be written: .csv"),
    ],
)
def test_an_output_costs_neither_what_is_read_nor_a_model(drawings, path, settings, message):
    with pytest.raises(IGPTError, match=message):
        cli.check_output(path, **settings)


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("drawings/scores.csv", {"reads": ["drawings"]}),
        ("report.png", {"reads": ["drawings", "user/data", "synthetic", ",".join(["drawings/many.cdb"] * 99), "a,"]}),
        ("report.json", {"reads": ["drawings"], "has_figure": True}),
        ("drawings", None),
        (None, {}),
    ],
)
def test_other_outputs_are_written_and_replaced(drawings, path, settings):
    if settings is None:
        path, settings = os.devnull, {"suffixes": (".csv", ""), "replaces": False}
    cli.check_output(path, **settings)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'prdc'", name="prdc"), "pip install 'igpt_hf[eval]'"),
        (ModuleNotFoundError("No module named 'onnx.x'", name="onnx.x"), "pip install 'igpt_hf[onnx]'"),
        (ModuleNotFoundError("No module named 'lomo'", name="lomo"), "Run pip install lomo, or leave out"),
        (PackageNotFoundError("The 'deepspeed>=0.9.3' distribution was not found. "), "not found. Install it"),
    ],
)
def test_what_is_not_installed_is_answered_with_how_to_install_it(error, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run_main(main)
    assert message in str(end.value.code)
