"""A model is found on the disk first; the Hub is asked once, and an error says what the name may have meant."""

import os

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.hub import HubStandIn, connect
from helpers.scripts import run_python
from igpt_hf import IGPTError, IGPTForCausalImageModeling, bundled
from igpt_hf.hub.loading import load_pretrained


LOAD = """
import time
import huggingface_hub
import transformers
from igpt_hf.hub.loading import load_pretrained

def load():
    return load_pretrained("user/digits")[0].num_parameters()

def wait(seconds):
    raise AssertionError("it waits to try again")

counts = [load()]
time.sleep = wait
huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:1"  # where nobody answers
transformers.utils.hub._hf_api = None
counts.append(load())
huggingface_hub.constants.HF_HUB_OFFLINE = True
counts.append(load())
assert len(set(counts)) == 1
"""


@pytest.fixture
def work(tiny_model, tiny_processor, tmp_path, monkeypatch):
    """A working directory with runs/digits, a model, and runs/half, where none is yet."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path / "runs" / "digits")
    tiny_processor.save_pretrained(tmp_path / "runs" / "digits")
    (tmp_path / "runs" / "half" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "checkpoint-5" / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Any connection fails the test, and so does any wait for another try."""

    def fail(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("time.sleep", fail)


def test_a_folder_is_loaded_whatever_its_name_looks_like(work, no_network):
    for name in ("runs/digits", "./runs/digits", "runs/digits/", str(work / "runs/digits")):
        assert load_pretrained(name)[1].image_size == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runs/hoda", r"no folder runs/hoda\. There are models in runs/digits\..*on the Hub.*no folder runs\.$"),
        ("runs/hoda/", r"no folder runs/hoda/\. There are models in runs/digits\. Train one: igpt train; or"),
        ("./runs/hoda", "no folder ./runs/hoda.*runs/digits"),
        ("../hoda", "no folder ../hoda"),
        ("~/hoda", "no folder ~/hoda"),
        ("nowhere", "no folder nowhere.*user/name"),
        ("a/b/c", "no folder a/b/c"),
        ("C:\\runs\\hoda", "no folder C:"),
        ("user/model.safetensors", "no folder user/model.safetensors"),
        ("runs/digits/config.json", "is a file: name the folder"),
        ("runs/half", r"no config\.json\. There are models in runs/half/checkpoint-5\."),
    ],
)
def test_what_looks_like_a_path_is_never_looked_for_on_the_hub(work, no_network, name, words):
    with pytest.raises(IGPTError, match=words):
        load_pretrained(name)


def test_a_hub_that_does_not_know_the_model_is_asked_once(work, monkeypatch):
    with HubStandIn() as hub, monkeypatch.context() as patch:
        connect(patch, hub)
        with pytest.raises(
            IGPTError, match="user/nowhere is neither a local folder nor a model on the Hub that you can read"
        ):
            load_pretrained("user/nowhere")
    assert [request for request in hub.requests if "nowhere" in request] == ["GET /api/models/user/nowhere"]


def test_a_hub_that_does_not_answer_is_asked_once(work, monkeypatch):
    with HubStandIn() as hub, monkeypatch.context() as patch:
        connect(patch, hub)
        hub.server.shutdown()
        hub.server.server_close()
        waits = []
        patch.setattr("time.sleep", waits.append)
        with pytest.raises(IGPTError, match="user/nowhere is not a local folder, and the Hub, .*, does not answer"):
            load_pretrained("user/nowhere")
    assert waits == []


@pytest.mark.slow
def test_a_model_in_the_cache_is_loaded_without_the_hub(work):
    with HubStandIn() as hub:
        hub.files["user/digits"] = {path.name: path.read_bytes() for path in (work / "runs/digits").iterdir()}
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "0"}
        run_python("-c", LOAD, env=os.environ | settings)


def test_a_model_in_the_box_is_found_by_its_name_unless_there_is_a_folder(
    tiny_model, tiny_processor, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("persian-digits")[0].config.name_or_path == bundled("persian-digits")
    tiny_model().save_pretrained("persian-digits")
    tiny_processor.save_pretrained("persian-digits")
    assert load_pretrained("persian-digits")[0].config.image_size == tiny_model().config.image_size


def test_a_model_with_a_table_of_positions_is_refused_as_an_earlier_one(tiny_model, tiny_processor, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    assert load_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    row, column = (weights.pop(f"model.embeddings.{name}.weight") for name in ("row", "column"))
    weights["model.embeddings.position.weight"] = torch.cat([row, column])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IGPTError, match="made by an earlier version"):
        load_pretrained(str(tmp_path))
    for options in ({}, {"output_loading_info": True}, {"ignore_mismatched_sizes": True, "num_labels": 5}):
        with pytest.raises(ValueError, match="made by an earlier version"):
            IGPTForCausalImageModeling.from_pretrained(tmp_path, **options)
