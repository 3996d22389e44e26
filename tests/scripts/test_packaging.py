"""The wheel: what it holds and tells, and that its commands work where there is no checkout."""

import email
import os
import re
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT
from helpers.scripts import run as run_command
from igpt_hf import bundled, cli


pytestmark = pytest.mark.slow  # builds a wheel and installs it
SMALL = ["--max_images", "60", "--num_hidden_layers", "1", "--num_train_epochs", "1", "--num_threads", "1"]
# Too wide for the compiled kernels: in a new folder they would be compiled anew, for a minute.
UNCOMPILED = ["--hidden_size", "144"]


def run(*command, **options) -> str:
    return run_command(*command, **options).stdout


def test_tests_for_other_systems_can_be_collected_where_there_are_no_modules_of_posix():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    core = workflow["jobs"]["other-systems"]["env"]["CORE"].split()
    program = "import sys, psutil, pytest; sys.modules.update(fcntl=None, resource=None); "  # psutil needs them here
    run(sys.executable, "-c", program + f"sys.exit(pytest.main({['--collect-only', '-q', *core]}))", cwd=ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def igpt(wheel, tmp_path_factory):
    """Run `igpt` as installed from the wheel, in a folder of its own; the checkout is not on the path.

    The environment borrows the libraries of this one; a folder named in a .pth file has its own .pth files, such as
    that of an editable installation, left out.
    """
    folder = tmp_path_factory.mktemp("installed")
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    builder.create(folder / "venv")
    context = builder.ensure_directories(folder / "venv")
    site = Path(run(context.env_exe, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    run(sys.executable, "-m", "pip", "--python", context.env_exe, "install", "--no-deps", "--no-index", wheel)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = run(context.env_exe, "-c", "import igpt_hf; print(igpt_hf.__file__)", cwd=folder, env=environment)
    assert Path(shown.strip()).is_relative_to(site)

    def igpt(*argv) -> str:
        return run(Path(context.bin_path) / "igpt", *argv, cwd=folder, env=environment)

    igpt.folder = folder
    igpt("train", *SMALL, *UNCOMPILED, "--output_dir", "runs/igpt", "--per_device_eval_batch_size", "8")
    return igpt


def test_the_wheel_has_the_scripts_of_the_commands_and_no_others(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    scripts = {name.removeprefix("igpt_hf/scripts/") for name in names if name.startswith("igpt_hf/scripts/")}
    assert scripts == {script for script, _ in cli.COMMANDS.values()}
    assert {"igpt_hf/py.typed", "igpt_hf/model_card.md"} <= names
    page = {f"igpt_hf/demo/{path.name}" for path in (ROOT / "docs" / "demo").iterdir()} - {"igpt_hf/demo/weights.js"}
    assert page <= names
    assert {f"igpt_hf/bundled/{name}/model.safetensors" for name in bundled()} <= names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "igpt_hf").rglob("*.py")}
    assert modules <= names and not any(name.startswith(("tests/", "scripts/", "docs/")) for name in names)


def test_the_index_page_needs_no_checkout_and_has_no_dead_link(metadata):
    page = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert page.startswith("# igpt_hf\n") and "igpt train" in page and "generate(" in page
    targets = re.findall(r"\]\(([^)]*)\)", page) + re.findall(r'(?:src|href)="([^"]*)"', page)
    assert targets and all(target.startswith("https://") for target in targets)
    assert not re.search(r"\bmake \w|scripts/|accelerate launch|docs/|benchmarks/|<!--", page)


def test_the_index_page_names_commands_that_there_are(metadata):
    named = set(re.findall(r"^igpt (\w+)", metadata.get_payload(), re.MULTILINE))
    assert named and named <= {name.split()[0] for name in cli.COMMANDS}


def test_what_the_package_imports_is_declared(metadata):
    """Libraries imported anywhere in the package or its scripts, each by the name under which an index has it."""
    imported = set()
    for folder in ("igpt_hf", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            imported |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    names = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn"}
    comes_with = {"httpx": "huggingface-hub", "httpx2": "huggingface-hub", "llvmlite": "numba"}
    only_if_asked_for = {"wandb", "trackio"}  # --report_to
    only_for_the_site = {"griffe"}  # with mkdocstrings
    prose = {"the"}
    imported -= sys.stdlib_module_names | only_if_asked_for | only_for_the_site | prose | {"igpt_hf"}
    needed = {(names | comes_with).get(name, name) for name in imported}
    declared = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in metadata.get_all("Requires-Dist")}
    assert {name.replace("_", "-") for name in needed} <= declared


def test_an_installed_wheel_trains(igpt):
    files = {path.name for path in (igpt.folder / "runs" / "igpt").iterdir()}
    assert {"model.safetensors", "README.md", "all_results.json", "samples.png", "loss_curve.png"} <= files


def test_an_installed_wheel_samples(igpt):
    igpt("sample", "runs/igpt", "--labels", "0", "1", "--output", "two.png")
    assert (igpt.folder / "two.png").stat().st_size > 0


def test_an_installed_wheel_evaluates(igpt):
    igpt("evaluate", "runs/igpt", "--max_images", "60", "--output", "report.json")
    assert '"nats_per_image"' in (igpt.folder / "report.json").read_text()


def test_an_installed_wheel_has_the_app_and_the_page_of_the_browser(igpt):
    pytest.importorskip("gradio")
    igpt("app", "runs/igpt", "--space", "space")  # all of the app but its server
    assert (igpt.folder / "space" / "igpt_hf" / "cli.py").is_file()
    igpt("export", "demo", "runs/igpt", "page")
    assert (igpt.folder / "page" / "weights.js").stat().st_size > 0
