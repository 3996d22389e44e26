"""CONTRIBUTING.md and benchmarks/README.md name the files that there are, and each version is in all its places."""

import re
from pathlib import Path

from helpers.paths import BENCHMARKS, ROOT
from igpt_hf import __version__


def named_files(text: str) -> dict[str, str]:
    """The tree in the first code block that begins with `igpt_hf/`: path -> what is said of it."""
    block = re.search(r"```\nigpt_hf/\n(.*?)```", text, re.DOTALL)[1]
    folders, files = ["igpt_hf"], {}
    for line in block.splitlines():
        indent, name, purpose = re.fullmatch(r"( +)(\S+) +(\S.*)", line).groups()
        folders = folders[: len(indent) // 2]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        else:
            files["/".join([*folders, name])] = purpose
    return files


def test_the_tree_names_every_file_of_the_package_and_no_other():
    package = ROOT / "igpt_hf"
    left_out = {"__pycache__", "bundled"}  # the models of bundled/ are no code
    kept = [path for path in package.rglob("*") if path.is_file() and not left_out & set(path.parts[:-1])]
    kept = [path for path in kept if path.suffix != ".txt"]  # the texts of --help, one for each command
    kept = {str(path.relative_to(ROOT)) for path in kept if path.stat().st_size > 0 or path.name == "py.typed"}
    assert named_files((ROOT / "CONTRIBUTING.md").read_text("utf-8")).keys() == kept


def test_the_folders_of_tests_are_those_of_the_package():
    rooms = {path.name for path in (ROOT / "igpt_hf").iterdir() if any(path.glob("[!_]*.py"))}
    assert {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))} >= rooms


def test_every_results_file_and_benchmark_is_explained():
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    results = {path.name for path in (BENCHMARKS / "results").iterdir()}
    assert set(re.findall(r"`results/([\w.]+)`", text)) == results
    scripts = {path.name for path in BENCHMARKS.glob("*.py")}
    assert scripts <= {Path(name).name for name in re.findall(r"[\w/]+\.py", text)}


def test_the_changelog_and_the_citation_have_the_version_of_the_package():
    changelog, citation = ((ROOT / name).read_text("utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    released = re.search(r"^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    cited = dict(re.findall(r"^([a-z-]+): (.*)$", citation, re.MULTILINE))
    assert released.groups() == (cited["version"], cited["date-released"])
    assert cited["version"] == __version__
