"""Pushing to the Hub and loading from it, with the real client against a stand-in on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn


SCRIPT = Path(__file__).parents[1] / "scripts" / "push_to_hub.py"
LOAD = """
import json, sys
sys.modules["igpt_hf"] = None  # as if it were not installed
from transformers import AutoImageProcessor, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("user/digits", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("user/digits", trust_remote_code=True)
print(json.dumps([type(model).__name__, list(model.generate(**processor.prompt(class_labels=[0, 1])).shape)]))
"""


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tiny_processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    tiny_model().save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    (folder / "README.md").write_text(f'---\nlibrary_name: transformers\n---\nX.from_pretrained("{folder}")\n')
    (folder / "training_args.bin").write_bytes(b"not for others")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"not for others")
    return folder


@pytest.fixture
def client(tmp_path):
    """Run Python in a process of its own whose Hub is the stand-in, with a fresh home."""

    def run(hub: HubStandIn, *argv, token: str | None = "hf_dummy") -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"} | ({"HF_TOKEN": token} if token else {})
        command = [sys.executable, *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("upload_mode", ["regular", "lfs"])
def test_a_pushed_model_loads_where_the_package_is_not_installed(checkpoint, client, upload_mode):
    before = contents(checkpoint)
    with HubStandIn(upload_mode) as hub:
        pushed = client(hub, SCRIPT, checkpoint, "user/digits", "--private")
        assert pushed.returncode == 0, pushed.stderr
        files = hub.files["user/digits"]
        assert hub.private["user/digits"]
        loaded = client(hub, "-c", LOAD)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert json.loads(loaded.stdout.splitlines()[-1]) == ["IGPTForCausalImageModeling", [2, 17]]
    assert hub.problems == []
    assert any("lfs" in request for request in hub.requests) == (upload_mode == "lfs")
    assert files["model.safetensors"] == before["model.safetensors"]
    assert {"modeling_igpt.py", "config.json", "preprocessor_config.json"} <= files.keys()
    assert not any("checkpoint" in name or name.endswith(".bin") for name in files)
    assert b'from_pretrained("user/digits")' in files["README.md"]
    assert contents(checkpoint) == before


def test_a_repository_that_is_there_already_is_updated(checkpoint, client):
    with HubStandIn() as hub:
        hub.files["user/digits"] = {"notes.txt": b"mine"}
        pushed = client(hub, SCRIPT, checkpoint, "user/digits")
    assert pushed.returncode == 0, pushed.stderr
    assert hub.files["user/digits"]["notes.txt"] == b"mine"
    assert "model.safetensors" in hub.files["user/digits"]


def test_a_connection_that_breaks_in_the_middle_is_retried(checkpoint, client):
    with HubStandIn(broken_commits=2) as hub:
        pushed = client(hub, SCRIPT, checkpoint, "user/digits")
    assert pushed.returncode == 0, pushed.stderr
    assert "attempt 3 of 4" in pushed.stderr
    assert "model.safetensors" in hub.files["user/digits"]


@pytest.mark.parametrize(
    ("settings", "token", "words"),
    [
        ({"refuse": True}, "hf_dummy", "may not write to user/digits"),
        ({}, None, "there is no token: log in with `hf auth login`"),
    ],
    ids=["no permission", "no token"],
)
def test_a_refusal_is_told_in_one_line_and_the_checkpoint_stays(checkpoint, client, settings, token, words):
    before = contents(checkpoint)
    with HubStandIn(**settings) as hub:
        pushed = client(hub, SCRIPT, checkpoint, "user/digits", token=token)
    assert pushed.returncode == 1
    assert words in pushed.stderr.splitlines()[-1]
    assert "Traceback" not in pushed.stderr
    assert contents(checkpoint) == before


def test_a_folder_without_a_model_and_a_bad_name_are_refused(checkpoint, client, tmp_path):
    with HubStandIn() as hub:
        (tmp_path / "empty").mkdir()
        empty = client(hub, SCRIPT, tmp_path / "empty", "user/digits")
        bad = client(hub, SCRIPT, checkpoint, "user/a b")
    assert "cannot be loaded as an Image GPT" in empty.stderr
    assert "is no name for a repository" in bad.stderr
    assert hub.files == {}
