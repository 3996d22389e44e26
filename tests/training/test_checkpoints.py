"""Checkpoints: whole or passed over, whatever breaks off the run, and nothing in them is ever executed."""

import errno
import fnmatch
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers.paths import BENCHMARKS
from helpers.scripts import contents, run_python
from helpers.training import (
    BY_FOUR_STEPS,
    RANDOM_PARTS,
    arguments,
    assert_equal_weights,
    logged,
    new_trainer,
    random_split,
)
from igpt_hf import IGPTError
from igpt_hf.hub.push import push_folder
from igpt_hf.training import checkpoints
from igpt_hf.training.arguments import parse_arguments
from igpt_hf.training.callbacks import SampleSheetCallback
from igpt_hf.training.checkpoints import last_complete_checkpoint, verify_checkpoint, write_manifest
from igpt_hf.training.file_names import MANIFEST
from igpt_hf.training.output_dir import LOCK, delete_overwritten, only_run_in, overwritten_files, prepare_output_dir
from igpt_hf.training.preemption import Preempted, SaveOnSigterm
from igpt_hf.training.run_settings import SETTINGS, run_settings


try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None
posix = pytest.mark.skipif(fcntl is None, reason="Windows has other locks, and no limits of a process")


def write_checkpoint(folder, step: int):
    """A whole checkpoint of three files, one of them in a folder."""
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "shards").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "shards/0.pt"):
        (checkpoint / name).write_text(f"{name} of step {step}")
    write_manifest(checkpoint)
    return checkpoint


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = [("optimizer.pt", damage) for damage in (remove, empty, cut_off, flip_a_bit)]
DAMAGE += [("shards/0.pt", cut_off), *((MANIFEST, damage) for damage in (remove, empty, cut_off))]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_message_and_kept(tmp_path, caplog, name, damage):
    for step in (9, 10):
        write_checkpoint(tmp_path, step)
    damaged = write_checkpoint(tmp_path, 11)
    damage(damaged / name)
    before = contents(damaged)
    assert name in verify_checkpoint(damaged)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    with pytest.raises(IGPTError, match=f"checkpoint-11 is not a complete checkpoint: .*{name}"):
        prepare(tmp_path, resume_from_checkpoint=str(damaged))
    assert prepare(tmp_path, resume_from_checkpoint="true") == str(tmp_path / "checkpoint-10")
    assert "checkpoint-11 is passed over" in caplog.text
    assert contents(tmp_path / "incomplete-checkpoint-11") == before
    assert not damaged.exists()


def test_two_incomplete_checkpoints_of_one_step_are_both_kept(tmp_path):
    write_checkpoint(tmp_path, 5)
    for text in ("first", "second"):
        (write_checkpoint(tmp_path, 6) / "optimizer.pt").write_text(text)
        prepare(tmp_path, resume_from_checkpoint="true")
    assert (tmp_path / "incomplete-checkpoint-6" / "optimizer.pt").read_text() == "first"
    assert (tmp_path / "incomplete-checkpoint-6-2" / "optimizer.pt").read_text() == "second"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell what is open")
def test_what_is_flushed_is_open_for_writing_as_windows_wants_it_and_the_folders_follow(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def watch(descriptor):
        is_writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE in (os.O_RDWR, os.O_WRONLY)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), is_folder, is_writable))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / "shards").mkdir(parents=True)
    for name in ("model.py", "shards/0.pt"):
        (checkpoint / name).write_text(name)
    (checkpoint / "model.py").chmod(0o444)  # as code of a read-only installation is copied
    write_manifest(checkpoint)
    assert verify_checkpoint(checkpoint) is None
    files = [("model.py", False, True), ("0.pt", False, True), (f"{MANIFEST}.tmp", False, True)]
    assert flushed == files + [(name, True, False) for name in ("shards", "checkpoint-3", tmp_path.name)]
    assert os.access(checkpoint / "model.py", os.W_OK)


# --- the output folder ----------------------------------------------------------------------------------------------


def prepare(folder, **overrides):
    return prepare_output_dir(arguments(folder, **overrides))


@pytest.mark.parametrize("name", ["training_args.bin", "all_results.json", "samples.png"])
def test_a_folder_with_a_run_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(IGPTError, match=rf"{name}.*--resume_from_checkpoint true.*--overwrite_output_dir true"):
        prepare(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_folder_with_checkpoints_only_is_refused_too(tmp_path):
    write_checkpoint(tmp_path, 5)
    with pytest.raises(IGPTError, match="checkpoint-5"):
        prepare(tmp_path)


def test_a_new_an_empty_and_a_foreign_folder_are_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-old").mkdir()
    assert prepare(tmp_path) is None
    assert prepare(tmp_path / "new") is None


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path):
    write_checkpoint(tmp_path, 5)
    logs = ["runs/Nov28_host/events.out.tfevents.1.host", "runs/Nov28_host/17.25/events.out.tfevents.2.host"]
    for name in ("model.safetensors", "samples/step-000005.png", *logs, "incomplete-checkpoint-6/a.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("of the run")
    foreign = {"notes.txt", "checkpoint-old/model.safetensors", "data/a.png", "README.txt", "samples/mine.png"}
    foreign |= {"runs/hoda/model.safetensors", "runs/hoda/runs/Nov27_host/events.out.tfevents.3.host"}
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    args = arguments(tmp_path, overwrite_output_dir=True)
    assert prepare_output_dir(args) is None
    assert contents(tmp_path) == before  # a mistake in the other flags costs nothing
    overwritten = overwritten_files(args, None)
    new_log = tmp_path / "runs" / "Nov29_host" / "events.out.tfevents.4.host"
    new_log.parent.mkdir()
    new_log.write_text("of the new run, whose first step comes after it")
    delete_overwritten(args, overwritten)
    assert new_log.exists()
    shutil.rmtree(new_log.parent)
    assert contents(tmp_path) == dict.fromkeys(foreign, b"mine")
    assert not (tmp_path / "runs" / "Nov28_host").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_files_that_others_write_too_are_no_run_to_be_overwritten(tmp_path, name, overwrite):
    """`--output_dir .` in a project's folder, or that of a model that was downloaded."""
    for file in (name, "data.png"):
        (tmp_path / file).write_text("mine")
    with pytest.raises(IGPTError, match=f"holds {name} but no run.*Choose another --output_dir"):
        prepare(tmp_path, overwrite_output_dir=overwrite)
    assert contents(tmp_path) == {name: b"mine", "data.png": b"mine"}


def settings_of(*flags) -> dict:
    return run_settings(*parse_arguments(list(flags)))


ACCUMULATED = ("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "6")


def test_a_run_is_resumed_with_its_own_data_model_and_optimizer(tmp_path):
    settings = settings_of("--data", "here/a.cdb,there/b.cdb", "--preset", "xs", "--split_seed", "3")
    newest = write_checkpoint(tmp_path, 7)
    older = write_checkpoint(tmp_path, 5)
    for checkpoint in (older, newest):
        (checkpoint / MANIFEST).unlink()
        (checkpoint / SETTINGS).write_text(json.dumps(settings))
        write_manifest(checkpoint)
    before = contents(tmp_path)
    args = arguments(tmp_path, resume_from_checkpoint=str(older))
    forgotten = settings_of("--data", "a.cdb,b.cdb", "--split_seed", "3", "--ema_decay", "0")
    with pytest.raises(IGPTError, match="--ema_decay was above 0 and is 0; --preset was xs and is xxs. Resume with"):
        prepare_output_dir(args, forgotten)
    with pytest.raises(IGPTError, match="--data was here/a.cdb,there/b.cdb and is synthetic; --split_seed was 3 and"):
        prepare_output_dir(args, settings_of("--preset", "xs"))
    with pytest.raises(IGPTError, match="--labels_from was not given and is top"):
        prepare_output_dir(args, settings | {"labels_from": "top"})
    for name, value in (("seed", 42), ("augment", None)):
        with pytest.raises(IGPTError, match=f"--{name} was {value or 'not given'} and is 0.5"):
            prepare_output_dir(args, settings | {name: 0.5})
    batch = settings_of("--data", "a.cdb,b.cdb", "--preset", "xs", "--split_seed", "3", *ACCUMULATED)
    with pytest.raises(IGPTError, match="--per_device_train_batch_size, times .*, was 32 and is 48"):
        prepare_output_dir(args, batch)
    assert contents(tmp_path) == before  # the newer one is not set aside
    moved = settings_of("--data", "a.cdb,b.cdb", "--preset", "xs", "--split_seed", "3", "--num_train_epochs", "90")
    assert prepare_output_dir(args, moved) == str(older)


def test_a_checkpoint_without_its_optimizer_is_not_resumed(tmp_path):
    """The Trainer would begin optimizer, schedule and averages anew, in silence."""
    checkpoint = write_checkpoint(tmp_path, 5)
    for name in ("optimizer.pt", MANIFEST):
        (checkpoint / name).unlink()
    write_manifest(checkpoint)
    before = contents(tmp_path)
    for resume in ("true", str(checkpoint)):
        with pytest.raises(IGPTError, match="checkpoint-5 holds a model without its optimizer .*--model_name_or_path"):
            prepare(tmp_path, resume_from_checkpoint=resume)
    with pytest.raises(IGPTError, match="without its optimizer"):
        prepare(tmp_path / "new", resume_from_checkpoint=str(checkpoint))
    assert contents(tmp_path) == before


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    with pytest.raises(IGPTError, match="typo/checkpoint-5: there is no such folder"):
        prepare(tmp_path / "new", resume_from_checkpoint=str(tmp_path / "typo" / "checkpoint-5"))
    write_checkpoint(tmp_path / "run", 5)
    with pytest.raises(IGPTError, match="run is the folder of a run: name .*checkpoint-5, for example"):
        prepare(tmp_path / "new", resume_from_checkpoint=str(tmp_path / "run"))


def test_the_run_that_is_resumed_is_not_deleted(tmp_path):
    write_checkpoint(tmp_path, 5)
    before = contents(tmp_path)
    args = arguments(tmp_path, overwrite_output_dir=True, resume_from_checkpoint="true")
    delete_overwritten(args, overwritten_files(args, prepare_output_dir(args)))
    assert contents(tmp_path) == before


def test_resuming_goes_on_from_the_checkpoint_that_is_named(tmp_path):
    for step in (5, 10):
        write_checkpoint(tmp_path, step)
    named = str(tmp_path / "checkpoint-10")
    assert prepare(tmp_path, resume_from_checkpoint=named) == named
    with pytest.raises(IGPTError, match="checkpoint-7: there is no such folder"):
        prepare(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    with pytest.raises(IGPTError, match="holds a run already"):
        prepare(tmp_path, resume_from_checkpoint="false")


def test_what_is_newer_than_the_named_checkpoint_is_kept_aside_so_that_the_run_goes_on_from_its_own(tmp_path, caplog):
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step)
    before = contents(tmp_path / "checkpoint-15")
    named = str(tmp_path / "checkpoint-5")
    assert prepare(tmp_path, resume_from_checkpoint=named) == named
    assert "checkpoint-15 is passed over: the run goes on from checkpoint-5, which is older" in caplog.text
    assert last_complete_checkpoint(tmp_path) == named
    assert contents(tmp_path / "left-checkpoint-15") == before
    with pytest.raises(IGPTError, match="left-checkpoint-15 was set aside: give it back its name"):
        prepare(tmp_path, resume_from_checkpoint=str(tmp_path / "left-checkpoint-15"))
    args = arguments(tmp_path, overwrite_output_dir=True)
    delete_overwritten(args, overwritten_files(args, None))
    assert contents(tmp_path) == {}


def test_going_on_from_another_runs_checkpoint_spares_the_run_that_is_there(tmp_path):
    other = str(write_checkpoint(tmp_path / "a", 5))
    assert prepare(tmp_path / "new", resume_from_checkpoint=other) == other
    write_checkpoint(tmp_path / "b", 5)
    before = contents(tmp_path)
    with pytest.raises(IGPTError, match="holds a run already"):
        prepare(tmp_path / "b", resume_from_checkpoint=other)
    with pytest.raises(IGPTError, match="checkpoint-6: there is no such folder"):
        prepare(tmp_path / "b", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"), overwrite_output_dir=True)
    assert contents(tmp_path) == before
    args = arguments(tmp_path / "b", resume_from_checkpoint=other, overwrite_output_dir=True)
    delete_overwritten(args, overwritten_files(args, prepare_output_dir(args)))
    assert contents(tmp_path / "b") == {}


def test_resuming_needs_a_checkpoint_and_an_output_folder_is_no_file(tmp_path):
    (write_checkpoint(tmp_path, 5) / MANIFEST).unlink()
    with pytest.raises(IGPTError, match="holds no complete checkpoint"):
        prepare(tmp_path, resume_from_checkpoint="true")
    assert (tmp_path / "checkpoint-5").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(IGPTError, match="is a file"):
        prepare(tmp_path / "file")


@pytest.mark.parametrize("name", [".", "new", "new/folder"])
def test_a_read_only_folder_is_refused_before_anything_is_done(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(IGPTError, match="cannot be written to: .* is read-only"):
        prepare(tmp_path / name)


# --- one run at a time ----------------------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from igpt_hf.training.output_dir import only_run_in

with only_run_in(sys.argv[1]):
    if os.fork() == 0:  # as a worker of a DataLoader, which outlives a killed parent for a while
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(100)
"""


@posix
@pytest.mark.slow
def test_a_folder_in_use_is_refused_until_its_owner_ends_even_if_it_is_killed(tmp_path):
    folder = tmp_path / "new" / "run"
    owner = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(IGPTError, match="run is in use: another run is training into it"), only_run_in(folder):
            pass
        assert os.listdir(folder) == [LOCK]  # it is still the owner's
    finally:
        owner.kill()
        owner.wait()
    with only_run_in(folder):
        pass
    assert os.listdir(folder) == []


def test_the_lock_leaves_no_trace_and_is_no_file_of_a_run(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "run"
    with pytest.raises(IGPTError, match="bad data"), only_run_in(folder):
        assert os.listdir(folder) == [LOCK]
        assert prepare(folder) is None
        raise IGPTError("bad data")
    assert os.listdir(tmp_path) == []
    with only_run_in(folder), only_run_in(tmp_path / "other"):
        (folder / "model.safetensors").write_text("a model")
        pushed = []
        monkeypatch.setattr("igpt_hf.hub.push.get_token", lambda: "token")
        monkeypatch.setattr("igpt_hf.hub.push.HfApi.create_repo", lambda *args, **kw: SimpleNamespace(repo_id="a/b"))
        monkeypatch.setattr(
            "igpt_hf.hub.push.HfApi.create_commit",
            lambda self, name, additions, **kw: pushed.extend(additions) or SimpleNamespace(commit_url="there"),
        )
        push_folder(folder, "a/b")
        assert [addition.path_in_repo for addition in pushed] == ["model.safetensors"]
        assert fnmatch.fnmatch(LOCK, "_*")  # what the Trainer leaves out of its own pushes
    assert contents(tmp_path) == {"new/run/model.safetensors": b"a model"}


@posix
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_disk_without_file_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog, code):
    def no_locks(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with only_run_in(tmp_path / "run"):
        (tmp_path / "run" / "model.safetensors").write_text("a model")
    assert "run has no file locks" in caplog.text
    assert contents(tmp_path) == {"run/model.safetensors": b"a model"}


@posix
def test_a_full_disk_at_the_lock_is_told(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "flock", full)
    with pytest.raises(IGPTError, match="cannot be written to: .*No space left"), only_run_in(tmp_path / "run"):
        pass


# --- runs that break off --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits():
    return {"train": random_split(48), "validation": random_split(21, seed=1)}


class At(TrainerCallback):
    """Do something after a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def start(folder, splits, processor, *callbacks, **overrides):
    return new_trainer(folder, splits, processor, callbacks, config=RANDOM_PARTS, **BY_FOUR_STEPS | overrides)


@pytest.fixture(scope="module")
def whole_run(splits, tiny_processor, tmp_path_factory):
    """Two epochs of six steps without interruption: the weights after each fourth step."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, splits, tiny_processor).train()
    return folder


def assert_goes_on_like(whole_run, folder, splits, processor):
    """Resume from the last complete checkpoint, and end with the weights of the uninterrupted run."""
    checkpoint = prepare(folder, resume_from_checkpoint="true")
    start(folder, splits, processor).train(resume_from_checkpoint=checkpoint)
    last = "checkpoint-12/model.safetensors"
    assert_equal_weights(load_file(whole_run / last), load_file(folder / last))


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_from_which_the_run_goes_on_bit_by_bit(splits, tiny_processor, whole_run, tmp_path):
    terminate = At(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Preempted, match=r"SIGTERM: .*checkpoint-5 is saved.*--resume_from_checkpoint true"):
            start(tmp_path, splits, tiny_processor, terminate, SaveOnSigterm()).train()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert_goes_on_like(whole_run, tmp_path, splits, tiny_processor)


@pytest.mark.slow
def test_sigterm_in_the_last_step_of_an_epoch_waits_for_the_epochs_evaluation(splits, tiny_processor, tmp_path):
    def begin(folder, *callbacks):
        return new_trainer(tmp_path / folder, splits, tiny_processor, callbacks, config=RANDOM_PARTS)

    whole = begin("whole")
    whole.train()
    terminate = At(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Preempted, match="checkpoint-6 is saved"):
            begin("ended", terminate, SaveOnSigterm()).train()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resumed = begin("ended")
    resumed.train(resume_from_checkpoint=str(tmp_path / "ended" / "checkpoint-6"))
    assert logged(resumed) == logged(whole)
    assert_equal_weights(whole.model.state_dict(), resumed.model.state_dict())


@posix
@pytest.mark.slow
@pytest.mark.parametrize("limit", [10_000, 40_000], ids=["in the weights", "in the optimizer's state"])
def test_a_full_disk_is_told_and_the_last_checkpoint_is_intact(splits, tiny_processor, whole_run, tmp_path, limit):
    weights, state = (whole_run / "checkpoint-4" / name for name in ("model.safetensors", "optimizer.pt"))
    assert 10_000 < weights.stat().st_size < 40_000 < state.stat().st_size
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = At(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1])))
    try:
        with pytest.raises(OSError, match=r"checkpoint-8 could not be written.*Last complete checkpoint: .*-4\."):
            start(tmp_path, splits, tiny_processor, fill).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert verify_checkpoint(tmp_path / "checkpoint-4") is None
    assert_goes_on_like(whole_run, tmp_path, splits, tiny_processor)
    assert (tmp_path / "incomplete-checkpoint-8").is_dir()


@pytest.mark.slow
def test_the_last_checkpoint_is_deleted_only_when_the_next_is_whole(splits, tiny_processor, tmp_path, monkeypatch):
    def break_off(checkpoint):
        if checkpoint.name == "checkpoint-8":
            raise KeyboardInterrupt
        write_manifest(checkpoint)

    monkeypatch.setattr(checkpoints, "write_manifest", break_off)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, splits, tiny_processor, save_total_limit=1).train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    monkeypatch.undo()
    start(tmp_path, splits, tiny_processor, save_total_limit=1).train()
    assert len(checkpoints.list_checkpoints(tmp_path)) == 1


def test_a_run_that_was_moved_finds_its_best_checkpoint(splits, tiny_processor, tmp_path):
    settings = {"learning_rate": 0.0, "muon_learning_rate": 0.0, "save_total_limit": None}  # the first is best
    first = new_trainer(tmp_path / "here", splits, tiny_processor, **settings)
    first.train()
    assert first.state.best_model_checkpoint == str(tmp_path / "here" / "checkpoint-6")
    (tmp_path / "here").rename(tmp_path / "there")
    resumed = new_trainer(tmp_path / "there", splits, tiny_processor, **settings | {"num_train_epochs": 3})
    resumed.train(resume_from_checkpoint=str(tmp_path / "there" / "checkpoint-12"))
    assert resumed.state.global_step == 18
    assert resumed.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-6")


@pytest.mark.slow
def test_a_resumed_run_remembers_how_much_patience_is_left(splits, tiny_processor, tmp_path):
    settings = {"learning_rate": 0.0, "muon_learning_rate": 0.0, "num_train_epochs": 9}  # no evaluation is better
    settings |= {"early_stopping_patience": 3, "save_total_limit": None}
    new_trainer(tmp_path, splits, tiny_processor, **settings | {"num_train_epochs": 3}).train()
    resumed = new_trainer(tmp_path, splits, tiny_processor, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-18"))  # the third evaluation: one more is left
    assert resumed.state.epoch == 4


@pytest.mark.slow
def test_a_run_whose_patience_is_over_is_over_when_it_is_resumed_unless_it_gets_more(splits, tiny_processor, tmp_path):
    settings = {"learning_rate": 0.0, "muon_learning_rate": 0.0, "num_train_epochs": 9}  # no evaluation is better
    settings |= {"early_stopping_patience": 2, "save_total_limit": None}
    new_trainer(tmp_path, splits, tiny_processor, **settings).train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-18")
    for patience, epochs in ((2, 3), (4, 5)):
        resumed = new_trainer(tmp_path, splits, tiny_processor, **settings | {"early_stopping_patience": patience})
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-18"))
        assert resumed.state.epoch == epochs


def test_a_sheet_of_samples_that_cannot_be_written_names_the_last_checkpoint(splits, tiny_processor, tmp_path):
    def full_disk(model):
        return SimpleNamespace(save=lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    with pytest.raises(OSError, match=r"step-000004.png could not be written: .*No space left.*checkpoint: none"):
        start(tmp_path, splits, tiny_processor, SampleSheetCallback(full_disk)).train()


# --- nothing in a checkpoint is executed ----------------------------------------------------------------------------


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_is_not_executed(splits, tiny_processor, whole_run, tmp_path, name):
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(whole_run / "checkpoint-4", checkpoint)
    torch.save({"state": Evil(tmp_path / "executed")}, checkpoint / name)
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint)
    trainer = start(tmp_path, splits, tiny_processor)
    if name == "training_args.bin":  # written, never read
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not (tmp_path / "executed").exists()
    torch.load(checkpoint / name, weights_only=False)
    assert (tmp_path / "executed").exists()  # it would have been


def test_weights_are_saved_as_safetensors_only(whole_run):
    names = set(json.loads((whole_run / "checkpoint-12" / MANIFEST).read_text()))
    assert "model.safetensors" in names
    assert not [name for name in names if name.startswith("pytorch_model")]


# --- for real -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_writes_a_checkpoint_ends_like_one_that_is_not(tmp_path):
    flags = ["--kills", 1, "--epochs", 2, "--images", 120, "--output", tmp_path / "crash.json"]
    run_python(BENCHMARKS / "crash_test.py", *flags)  # its exit status says whether weights and state are equal
    results = json.loads((tmp_path / "crash.json").read_text())
    assert results["kills"] == 1
    assert results["final_model_is_bit_equal"]
    assert results["tensors_not_bit_equal"] == []
