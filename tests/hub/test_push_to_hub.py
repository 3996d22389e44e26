"""Pushing to the Hub and loading from it, with the real client against a stand-in on this machine."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from helpers.hub import HubStandIn, connect
from helpers.paths import SCRIPTS
from helpers.scripts import contents, run_python
from igpt_hf import IGPTForCausalImageModeling, IGPTForImageClassification, IGPTImageProcessor


CODE = {"modeling_igpt.py", "configuration_igpt.py", "image_processing_igpt.py", "pipeline_igpt.py"}
MODEL = {"model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json"}
LOAD = """
import json, re, sys
for name in ("igpt_hf", "numba"):
    sys.modules[name] = None  # as if they were not installed
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel
with_package, without = re.findall(r"```python\\n(.*?)```", ModelCard.load("user/digits").text, re.DOTALL)
exec(without)  # makes model, processor and images
ids = model.generate(**processor.prompt(class_labels=[0, 1]))
trust = {"trust_remote_code": True}
base, config = AutoModel.from_pretrained("user/digits", **trust), AutoConfig.from_pretrained("user/digits", **trust)
print(json.dumps({
    "classes": [type(x).__name__ for x in (model, base, config, processor, draw)],
    "modules": sorted({type(x).__module__.split(".")[0] for x in (model, base, config, processor, draw)}),
    "sizes": [image.size for image in images],
    "ids": ids.tolist(),
    "nats": (-model.log_likelihood(ids)).tolist(),
}))
"""


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tiny_processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    tiny_model().save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    code = 'X.from_pretrained("runs/digits"), pipeline("task", model="runs/digits")'
    (folder / "README.md").write_text(f"---\nlibrary_name: transformers\n---\n{code}\n")
    (folder / "training_args.bin").write_bytes(b"not for others")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"not for others")
    return folder


@pytest.fixture
def connected(monkeypatch):
    return lambda hub, token="hf_dummy": connect(monkeypatch, hub, token)


@pytest.fixture
def script(monkeypatch):
    """Run a script in this process; returns what it says when it ends with an error, or None."""

    def main(name: str, *argv) -> str | None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as end:
            return str(end.code)

    return main


# --- scripts/push_to_hub.py -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("upload_mode", ["regular", "lfs"])
def test_all_that_others_need_is_uploaded_in_one_commit(checkpoint, connected, script, upload_mode):
    before = contents(checkpoint)
    with HubStandIn(upload_mode) as hub:
        connected(hub)
        assert script("push_to_hub.py", checkpoint, "user/mine") is None
        assert script("push_to_hub.py", checkpoint, "user/digits", "--private") is None
    files = hub.files["user/digits"]
    assert hub.private["user/digits"]
    assert hub.wishes["user/mine"].keys().isdisjoint({"private", "visibility"})  # the owner's default
    assert hub.problems == []
    assert hub.messages["user/digits"] == ["Upload Image GPT"]
    assert any("lfs" in request for request in hub.requests) == (upload_mode == "lfs")
    assert any("validate-yaml" in request for request in hub.requests)
    assert CODE | MODEL <= files.keys()
    assert not any("checkpoint" in name or name.endswith(".bin") for name in files)
    assert {name: files[name] for name in files if name != "README.md"} == {
        name: before[name] for name in files if name != "README.md"
    }
    assert files["README.md"].endswith(b'X.from_pretrained("user/digits"), pipeline("task", model="user/digits")\n')
    assert contents(checkpoint) == before


def test_a_classifier_is_pushed_and_what_cannot_be_loaded_is_refused_in_words(
    checkpoint, tiny_processor, connected, script, tmp_path
):
    model = IGPTForImageClassification.from_pretrained(checkpoint)
    for folder in (tmp_path / "classifier", tmp_path / "broken"):
        model.save_pretrained(folder)
        tiny_processor.save_pretrained(folder)
    (tmp_path / "classifier" / "trainer_state.json").write_text("{}")
    (tmp_path / "broken" / "config.json").write_text("{")
    with HubStandIn() as hub:
        connected(hub)
        assert script("push_to_hub.py", tmp_path / "classifier", "user/classifier") is None
        assert "cannot be loaded as an Image GPT" in script("push_to_hub.py", tmp_path / "broken", "user/broken")
    assert "model.safetensors" in hub.files["user/classifier"]
    assert "trainer_state.json" not in hub.files["user/classifier"]  # the log stays here
    assert "user/broken" not in hub.files


def test_results_are_pushed_without_the_folders_of_this_machine(checkpoint, connected, script, tmp_path):
    report = {
        "data": f"{tmp_path}/me/digits.cdb, ~/labels.npy",
        "model": f"{tmp_path}/me/x",
        "test_nats_per_image": 50.5,
    }
    for name, value in (
        ("report.json", report),
        ("all_results.json", {"data": "user/digits", "model_name_or_path": f"{tmp_path}/me/first", "seed": 3}),
    ):
        (checkpoint / name).write_text(json.dumps(value))
    before = contents(checkpoint)
    with HubStandIn() as hub:
        connected(hub)
        assert script("push_to_hub.py", checkpoint, "user/digits") is None
    files = hub.files["user/digits"]
    assert json.loads(files["report.json"]) == report | {"data": "digits.cdb,labels.npy", "model": "x"}
    results = {"data": "user/digits", "model_name_or_path": "first", "seed": 3}  # an id on the Hub is no path
    assert json.loads(files["all_results.json"]) == results
    assert contents(checkpoint) == before


def test_a_repository_that_is_there_already_is_updated(checkpoint, connected, script):
    with HubStandIn() as hub:
        hub.files["user/digits"] = {"notes.txt": b"mine", "model.safetensors": b"old"}
        connected(hub)
        assert script("push_to_hub.py", checkpoint, "user/digits") is None
    assert hub.files["user/digits"]["notes.txt"] == b"mine"
    assert hub.files["user/digits"]["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "breaks", [{"broken_commits": 3}, {"broken_uploads": 1, "upload_mode": "lfs"}], ids=["commit", "upload"]
)
def test_a_connection_that_breaks_in_the_middle_is_retried(checkpoint, connected, script, breaks):
    with HubStandIn(**breaks) as hub:
        connected(hub)
        assert script("push_to_hub.py", checkpoint, "user/digits") is None
    assert (hub.broken_commits, hub.broken_uploads) == (0, 0)
    assert hub.files["user/digits"]["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert hub.messages["user/digits"] == ["Upload Image GPT"]
    assert hub.problems == []


@pytest.mark.parametrize(
    ("settings", "token", "words"),
    [
        ({"refuse": True}, "hf_dummy", "the Hub refused (403): this token may not write to user/digits"),
        ({}, "stolen", "the Hub refused (401): this token may not write to user/digits"),
        ({}, None, "no token was found: log in with `hf auth login`"),
        ({"broken_commits": 4}, "hf_dummy", "the Hub cannot be reached"),
    ],
    ids=["no permission", "bad token", "no token", "no connection"],
)
def test_a_refusal_is_told_in_one_line_and_the_checkpoint_stays(checkpoint, connected, script, settings, token, words):
    before = contents(checkpoint)
    with HubStandIn(**settings) as hub:
        connected(hub, token)
        message = script("push_to_hub.py", checkpoint, "user/digits")
    assert message.startswith(f"error: {words}")
    assert len(message.splitlines()) == 1
    assert contents(checkpoint) == before
    assert hub.files.get("user/digits", {}) == {}


def test_an_error_in_a_card_that_somebody_edited_is_told(checkpoint, connected, script, tmp_path):
    for name, content in contents(checkpoint).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("---\nlicense: my own\n---\n")
    with HubStandIn() as hub:
        connected(hub)
        message = script("push_to_hub.py", tmp_path, "user/digits")
    assert message.startswith("error: README.md")
    assert "license my own" in message
    assert hub.files["user/digits"] == {}


def test_a_folder_without_a_model_and_a_bad_name_are_refused(checkpoint, connected, script, tmp_path):
    with HubStandIn() as hub:
        connected(hub)
        assert "is not a folder" in script("push_to_hub.py", tmp_path / "nowhere", "user/digits")
        (tmp_path / "empty").mkdir()
        assert "holds no trained model" in script("push_to_hub.py", tmp_path / "empty", "user/digits")
        for path in (str(tmp_path / "copy"), "./copy", "~/models/copy", "a/b/c"):
            assert f"{path} is a path and no repository of the Hub" in script("push_to_hub.py", checkpoint, path)
        assert "is not a valid repository name" in script("push_to_hub.py", checkpoint, "user/a b")
    assert hub.files == {}


def test_offline_is_told_from_a_broken_connection(checkpoint, script, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_dummy")
    assert "offline mode is enabled" in script("push_to_hub.py", checkpoint, "user/digits")


# --- model.push_to_hub, processor.push_to_hub -----------------------------------------------------------------------


@pytest.mark.parametrize("upload_mode", ["regular", "lfs"])
def test_model_and_processor_push_themselves_with_their_code(checkpoint, connected, upload_mode):
    before = contents(checkpoint)
    model = IGPTForCausalImageModeling.from_pretrained(checkpoint)
    processor = IGPTImageProcessor.from_pretrained(checkpoint)
    with HubStandIn(upload_mode, broken_uploads=upload_mode == "lfs") as hub:  # the client's own retry
        connected(hub)
        model.push_to_hub("user/digits")
        processor.push_to_hub("user/digits")
        files = dict(hub.files["user/digits"])
        model.push_to_hub("user/digits")  # nothing has changed
        assert hub.files["user/digits"] == files
    assert hub.problems == []
    assert hub.broken_uploads == 0
    assert CODE | MODEL <= files.keys()
    assert {name: files[name] for name in CODE | MODEL} == {name: before[name] for name in CODE | MODEL}
    assert contents(checkpoint) == before


def test_a_model_that_pushes_itself_keeps_the_card_that_is_there(checkpoint, connected, script):
    with HubStandIn() as hub:
        connected(hub)
        script("push_to_hub.py", checkpoint, "user/digits")
        IGPTForCausalImageModeling.from_pretrained(checkpoint).push_to_hub("user/digits")
    assert b'X.from_pretrained("user/digits")' in hub.files["user/digits"]["README.md"]


@pytest.mark.parametrize(
    ("settings", "token", "error", "words"),
    [
        ({"refuse": True}, "hf_dummy", HfHubHTTPError, "403 Forbidden"),
        ({}, None, OSError, "[Tt]oken|401"),
        ({"broken_commits": 99}, "hf_dummy", Exception, "disconnected|closed|reset"),
    ],
    ids=["no permission", "no token", "no connection"],
)
def test_the_library_says_why_a_model_could_not_push_itself(checkpoint, connected, settings, token, error, words):
    before = contents(checkpoint)
    model = IGPTForCausalImageModeling.from_pretrained(checkpoint)
    with HubStandIn(**settings) as hub:
        connected(hub, token)
        with pytest.raises(error, match=words):
            model.push_to_hub("user/digits")
        assert hub.files.get("user/digits", {}) == {}
        hub.refuse, hub.broken_commits = False, 0
        connected(hub)
        model.push_to_hub("user/digits")  # the model is as good as before
    assert hub.files["user/digits"]["model.safetensors"] == before["model.safetensors"]
    assert contents(checkpoint) == before


# --- the Trainer's --push_to_hub ------------------------------------------------------------------------------------

TRAIN = ["--max_images", "60", "--image_size", "8", "--num_hidden_layers", "1", "--num_train_epochs", "2"]
TRAIN += ["--num_threads", "1", "--push_to_hub", "true", "--hub_model_id", "user/digits", "--report_to", "none"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of scripts/train.py that pushes, on a connection that breaks twice: its folder, and the Hub."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with HubStandIn("lfs", broken_commits=2) as hub, pytest.MonkeyPatch.context() as patch:
        connect(patch, hub)
        patch.setattr(sys, "argv", ["train.py", *TRAIN, "--output_dir", str(folder)])
        runpy.run_path(str(SCRIPTS / "train.py"), run_name="__main__")
        patch.undo()
        yield folder, hub


@pytest.mark.slow
def test_a_run_that_pushes_uploads_its_results_with_its_own_card(trained):
    folder, hub = trained
    files, results = hub.files["user/digits"], json.loads((folder / "all_results.json").read_text())
    assert hub.problems == []
    assert hub.messages["user/digits"] == ["End of training"]
    pictures = {"loss_curve.png", "samples.png", "completions.png"}
    assert CODE | MODEL | pictures | {"README.md", "all_results.json"} <= files.keys()
    assert not any(name.endswith(".bin") or "checkpoint" in name or name == "data.png" for name in files)
    local = (folder / "README.md").read_text(encoding="utf-8")
    assert files["README.md"].decode() == local.replace(f'"{folder}"', '"user/digits"')
    assert f"{results['test_nats_per_image']:.2f}" in local
    assert "igpt_hf" in local
    assert "generated from Trainer" not in local
    assert str(folder) not in files["README.md"].decode()
    card = ModelCard(files["README.md"].decode())
    assert ModelCardData(**card.data.to_dict()).eval_results[0].metric_type == "nats_per_image"
    assert card.data.license == "apache-2.0"


@pytest.mark.slow
def test_a_pushed_model_loads_by_the_code_in_its_card_without_package_and_numba(trained, tmp_path):
    folder, hub = trained
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = run_python("-c", LOAD, env=environment, cwd=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["classes"] == [
        *("IGPTForCausalImageModeling", "IGPTModel", "IGPTConfig", "IGPTImageProcessor"),
        "BinaryImageGenerationPipeline",
    ]
    assert found["modules"] == ["transformers_modules"]
    assert found["sizes"] == [[8, 8]] * 3
    nats = -IGPTForCausalImageModeling.from_pretrained(folder).log_likelihood(torch.tensor(found["ids"]))
    assert found["nats"] == pytest.approx(nats.tolist(), abs=1e-4)
    assert hub.problems == []


@pytest.mark.slow
def test_a_run_that_may_not_push_says_so_and_is_complete_on_this_machine(connected, script, trained, tmp_path):
    before = contents(trained[0])
    with HubStandIn(refuse=True) as hub:
        connected(hub)
        message = script("train.py", *TRAIN, "--output_dir", tmp_path / "run")
    assert message.startswith("error: the Hub refused (403): this token may not write to user/digits")
    assert contents(tmp_path / "run").keys() == before.keys()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_without_a_token_a_run_that_should_push_does_not_begin(connected, script, tmp_path):
    with HubStandIn() as hub:
        connected(hub, token=None)
        message = script("train.py", *TRAIN, "--output_dir", tmp_path / "run")
    assert message.startswith("error: no token was found: log in with `hf auth login`, or set HF_TOKEN")
    assert not (tmp_path / "run").exists()
