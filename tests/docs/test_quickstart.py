"""docs/quickstart.ipynb: its code runs, and what is committed is small and what a reader should see.

`jupyter execute --inplace docs/quickstart.ipynb` makes its pictures anew; remove the JPEG copies before a commit.
"""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.hub import HubStandIn
from helpers.paths import DOCS, ROOT


NOTEBOOK = DOCS / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_every_cell_runs_and_the_model_that_it_trains_is_pushed(
    notebook, tiny_model, tiny_processor, tmp_path, monkeypatch
):
    tiny_model(num_labels=10).save_pretrained(tmp_path / "model")
    tiny_processor.from_dict({**tiny_processor.to_dict(), "num_labels": 10}).save_pretrained(tmp_path / "model")
    settings = {"MODEL": str(tmp_path / "model"), "EPOCHS": 1, "REPO": "user/shapes"}
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with HubStandIn() as hub:
        for name, value in (("HF_ENDPOINT", hub.url), ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", "hf_dummy")):
            monkeypatch.setenv(name, value)
        NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(DOCS)}}).execute()
    assert pictures(notebook) == 7
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    warnings = [output.text for output in outputs if output.get("name") == "stderr"]
    assert [text for text in warnings if "min_posterior" not in text] == []  # a model of one epoch may not reach it
    assert {"model.safetensors", "README.md", "samples.png"} <= hub.files["user/shapes"].keys()
    assert hub.problems == []


def test_what_is_committed_has_its_pictures_and_nothing_of_the_machine_it_was_made_on(notebook):
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert pictures(notebook) == 7
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    for words in (*(f"/{folder}/" for folder in ("home", "root", "tmp", "work")), "Traceback", "stderr"):
        assert words not in text
