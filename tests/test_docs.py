"""The code in the documentation runs, and what it claims about files and flags is true."""

import dataclasses
import re
from pathlib import Path

import pytest

from igpt_hf.training import ConfigArguments, DataArguments, IGPTTrainingArguments


ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LAUNCHER = {"config_file", "cpu", "num_processes", "nproc_per_node"}  # of accelerate and torchrun
TEXTS = [ROOT / "README.md", *PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))], ids=names)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch, tmp_path):
    import torch

    monkeypatch.chdir(tmp_path)
    default, namespace = torch.get_default_dtype(), {}
    try:
        for block in BLOCK.findall(page.read_text("utf-8")):
            exec(compile(block, str(page), "exec"), namespace)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("page", TEXTS, ids=names)
def test_links_and_pictures_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", TEXTS, ids=names)
def test_scripts_and_flags_in_commands_exist(page):
    known = {field.name for kind in (DataArguments, ConfigArguments, IGPTTrainingArguments)
             for field in dataclasses.fields(kind)} | {"config", "help", *LAUNCHER}  # fmt: skip
    text = page.read_text("utf-8")
    for script in re.findall(r"(?:scripts|benchmarks)/\w+\.(?:py|yaml)", text):
        assert (ROOT / script).is_file(), script
    for line in re.findall(r"[^\n|`]*\b(?:scripts|benchmarks)/\w+\.py[^\n|`]*", text):
        source = (ROOT / re.search(r"(?:scripts|benchmarks)/\w+\.py", line)[0]).read_text("utf-8")
        own = set(re.findall(r'add_argument\(\s*"--(\w+)"', source))
        for flag in re.findall(r"(?<=\s)--(\w+)", line):
            assert flag in (own or known) or ("train.py" in line and flag in known), f"{line}: --{flag}"
