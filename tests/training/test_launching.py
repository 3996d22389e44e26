"""Several processes: what is said about them, and that they train the same model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from helpers import fsdp_on_cpu
from helpers.paths import ROOT, SCRIPTS
from helpers.scripts import LAUNCH, contents, results_of, run
from helpers.training import new_trainer, random_split
from igpt_hf import IGPTError
from igpt_hf.distributed import describe_launch, launch_warnings, on_first_process
from igpt_hf.model import modeling_igpt
from igpt_hf.training.arguments import IGPTTrainingArguments
from igpt_hf.training.checkpoints import last_complete_checkpoint, list_checkpoints
from igpt_hf.training.output_dir import only_run_in, prepare_output_dir


CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def arguments(**overrides) -> SimpleNamespace:
    settings = {"world_size": 1, "device": torch.device("cpu"), "use_cpu": False, "mixed_precision": "no", "n_gpu": 0}
    return SimpleNamespace(**settings | overrides)


def test_the_start_says_what_is_really_in_use(monkeypatch):
    assert describe_launch(arguments(), 2) == "1 process(es) on cpu, 2 CPU thread(s) each, precision fp32"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    args = arguments(world_size=16, mixed_precision="bf16")
    assert describe_launch(args, 1) == "16 process(es) on 2 machines on cpu, 1 CPU thread(s) each, precision bf16"


CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("args", "environ", "words"),
    [
        (arguments(), {}, None),
        (arguments(), {"MASTER_ADDR": "127.0.0.1"}, "more than one process was requested"),
        (arguments(), {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}, "more than one process was requested"),
        (arguments(use_cpu=True), {"MASTER_ADDR": "a", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        (arguments(world_size=2, use_cpu=True), {"MASTER_ADDR": "a", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, None),
        (arguments(world_size=2), {"MASTER_ADDR": "a", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "there is no GPU"),
        (arguments(device=CUDA, n_gpu=4), {}, "4 GPUs share one process"),
        (arguments(device=CUDA, n_gpu=1, world_size=8), {"MASTER_ADDR": "a", "WORLD_SIZE": "8"}, None),
    ],
)
def test_less_than_was_asked_for_is_warned_of(args, environ, words):
    warnings = launch_warnings(args, environ)
    assert len(warnings) == (words is not None)
    assert all(words in warning for warning in warnings)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_are_understood_and_say_how_they_are_used(path):
    config = load_config_from_file(str(path))  # raises at a key that accelerate does not know
    assert f"--config_file configs/accelerate/{path.name}" in path.read_text()
    assert config.num_processes % config.num_machines == 0
    block = getattr(config, "fsdp_config", {}).get("fsdp_transformer_layer_cls_to_wrap")
    assert block is None or hasattr(modeling_igpt, block)


def test_the_first_process_decides_and_its_error_is_everyones():
    assert on_first_process(lambda: 3) == 3
    with pytest.raises(IGPTError, match="no"):
        on_first_process(lambda: (_ for _ in ()).throw(IGPTError("no")))


def test_muon_refuses_parameters_that_are_cut_into_parts(tiny_processor, tmp_path):
    splits = {"train": random_split(8), "validation": random_split(8)}
    trainer = new_trainer(tmp_path, splits, tiny_processor)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="--use_muon false"):
        trainer.create_optimizer()


POOL = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from igpt_hf.distributed import end_with_parent
import os
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    parent = subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=20)  # raises if it is still there


# --- for real -------------------------------------------------------------------------------------------------------

SMALL = ["--use_cpu", "true", "--max_images", "120", "--image_size", "14", "--num_hidden_layers", "1"]
SMALL += ["--num_threads", "1", "--disable_tqdm", "true"]
# A script whose threads of gloo outlive it aborts now and then: they may need the interpreter that has ended.
RUN_AND_LOOK = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
names = [(thread / "comm").read_text() for thread in pathlib.Path("/proc/self/task").glob("*")]
assert not any("gloo" in name for name in names), names
"""


@pytest.fixture
def two_processes(tmp_path) -> list:
    """The command that trains on two CPU processes over gloo, and fails if a thread of gloo is left at the end."""
    script = tmp_path / "run_and_look.py"
    script.write_text(RUN_AND_LOOK)
    config = CONFIGS[0].with_name("cpu-2.yaml")
    return [LAUNCH[0], "launch", "--config_file", config, script, SCRIPTS / "train.py", *SMALL]


@pytest.mark.slow
def test_two_processes_one_process_and_accumulation_train_the_same_model_to_the_last_bit(two_processes, tmp_path):
    """2 processes x batch 4 (over gloo) = 1 process x batch 8 = batch 4 x 2 accumulated, with the default recipe."""
    whole = ["--max_images", "116"]  # 96 to train on: an epoch has no batch that is smaller
    flags = [*whole, "--max_steps", "24", "--logging_steps", "1"]
    one, half = [sys.executable, SCRIPTS / "train.py", *SMALL], ["--per_device_train_batch_size", "4"]
    runs = {
        "one": [*one, "--per_device_train_batch_size", "8"],
        "sum": [*one, *half, "--gradient_accumulation_steps", "2"],
        "two": [*two_processes, *half],
    }
    logs = {}
    for name, command in runs.items():
        logs[name] = run(*command, *flags, "--output_dir", tmp_path / name).stderr
    assert "1 process(es)" in logs["one"] and "2 process(es)" in logs["two"]
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in runs}
    losses = {}
    for name in runs:
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        losses[name] = torch.tensor([entry["loss"] for entry in history if "loss" in entry], dtype=torch.float64)
    assert len(losses["one"]) == 24
    for name in ("sum", "two"):
        assert all(torch.equal(weights[name][key], weights["one"][key]) for key in weights["one"])
        assert (losses[name] - losses["one"]).abs().max() < 1e-6  # the order in which losses are averaged
        for split in ("train", "validation", "test"):  # uneven last batches
            nats = [results_of(tmp_path / run_name)[f"{split}_nats_per_image"] for run_name in ("one", name)]
            assert nats[0] == pytest.approx(nats[1], rel=1e-6)
    assert losses["one"][-1] < losses["one"][0] - 0.1


@pytest.mark.slow
def test_fsdp_trains_resumes_and_saves_what_one_process_does(tmp_path):
    """configs/accelerate/fsdp-8.yaml with two processes, and PyTorch's FSDP over gloo."""
    settings = yaml.safe_load(CONFIGS[0].with_name("fsdp-8.yaml").read_text())
    settings |= {"num_processes": 2, "mixed_precision": "no"}
    (tmp_path / "fsdp.yaml").write_text(yaml.safe_dump(settings))
    launch = [
        LAUNCH[0],
        "launch",
        "--config_file",
        tmp_path / "fsdp.yaml",
        fsdp_on_cpu.__file__,
    ]
    flags = [*SMALL, "--max_images", "116", "--use_muon", "false", "--num_train_epochs", "2"]  # 6 batches of 16
    fsdp = [
        *launch,
        SCRIPTS / "train.py",
        *flags,
        "--per_device_train_batch_size",
        "8",
        "--output_dir",
        tmp_path / "fsdp",
    ]
    run(
        sys.executable,
        SCRIPTS / "train.py",
        *flags,
        "--per_device_train_batch_size",
        "16",
        "--output_dir",
        tmp_path / "one",
    )
    run(*fsdp)
    first, expected = (results_of(tmp_path / name) for name in ("fsdp", "one"))
    for split in ("train", "validation", "test"):
        assert first[f"{split}_nats_per_image"] == pytest.approx(expected[f"{split}_nats_per_image"], rel=1e-4)
    names = [{path.name for path in (tmp_path / name).iterdir() if path.is_file()} for name in ("fsdp", "one")]
    assert names[0] == names[1]  # the model's code among them
    assert "pytorch_model_fsdp.bin" in {path.name for path in (tmp_path / "fsdp").glob("checkpoint-*/*")}  # it was cut
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("fsdp", "one")]
    assert {key: weight.shape for key, weight in weights[0].items()} == {
        key: weight.shape for key, weight in weights[1].items()
    }
    shutil.rmtree(max((tmp_path / "fsdp").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))
    run(*fsdp, "--resume_from_checkpoint", "true")
    again = results_of(tmp_path / "fsdp")
    assert again["test_nats_per_image"] == pytest.approx(first["test_nats_per_image"], rel=1e-6)


@pytest.mark.slow
def test_the_training_ends_with_its_launcher_and_leaves_a_checkpoint(tmp_path):
    """`accelerate launch` does not pass SIGTERM on; and it asked for two processes and got one."""
    command = [
        LAUNCH[0],
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        SCRIPTS / "train.py",
        *SMALL,
        "--output_dir",
        tmp_path,
    ]
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen([*map(str, command), "--num_train_epochs", "1000"], stderr=log, stdout=log)
    try:
        wait_until(lambda: last_complete_checkpoint(tmp_path) is not None)
        os.kill(launcher.pid, signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in (tmp_path / "log").read_text())
    finally:
        launcher.kill()
        launcher.wait()
    text = (tmp_path / "log").read_text()
    assert "warning: more than one process was requested" in text
    saved = text.partition("SIGTERM: ")[2].partition(" is saved")[0]
    assert saved == last_complete_checkpoint(tmp_path)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_ends_both_and_the_run_goes_on_bit_by_bit(two_processes, tmp_path):
    flags = ["--per_device_train_batch_size", "4", "--num_train_epochs", "12", "--early_stopping_patience", "99"]
    ended, whole = ([*map(str, two_processes), *flags, "--output_dir", str(tmp_path / name)] for name in ("a", "b"))
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(ended, stderr=log, stdout=log)
    try:
        wait_until(lambda: list_checkpoints(tmp_path / "a"))  # perhaps while it is written
        processes = psutil.Process(launcher.pid).children()
        assert len(processes) == 2
        processes[1].terminate()
        assert launcher.wait(timeout=100) == 0
    finally:
        launcher.kill()
    assert not (tmp_path / "a" / "all_results.json").exists()
    assert f"SIGTERM: {last_complete_checkpoint(tmp_path / 'a')} is saved" in (tmp_path / "log").read_text()
    run(*ended, "--resume_from_checkpoint", "true")
    run(*whole)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    before = contents(tmp_path / "a")
    assert "holds a finished run (12 epochs" in run(*ended, "--resume_from_checkpoint", "true").stderr
    assert contents(tmp_path / "a") == before


@pytest.mark.slow
def test_a_folder_can_be_used_at_once_when_the_training_in_it_was_killed(two_processes, tmp_path):
    flags = ["--output_dir", str(tmp_path), "--num_train_epochs", "1000", "--early_stopping_patience", "0"]
    launcher = subprocess.Popen([*map(str, LAUNCH), *SMALL, *flags], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: last_complete_checkpoint(tmp_path) is not None)
        second = run(*two_processes, *flags, "--resume_from_checkpoint", "true", check=False)
        assert second.returncode != 0
        assert "is in use: another run is training into it" in second.stderr
        (training,) = psutil.Process(launcher.pid).children()
        training.kill()
        training.wait(timeout=20)
        with only_run_in(tmp_path):  # while the launcher is still there
            assert prepare_output_dir(IGPTTrainingArguments(str(tmp_path), resume_from_checkpoint="true"))
        launcher.wait(timeout=100)
    finally:
        launcher.kill()


def wait_until(condition, seconds: float = 200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
