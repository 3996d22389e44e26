"""The scripts, run as a user runs them: what they write, and what they say to bad input."""

import csv
import json
import math
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageClassification

import igpt_hf  # noqa: F401  registers the model
from helpers.paths import EXAMPLES, SCRIPTS
from helpers.scripts import FILES, LAUNCH, contents, results_of, run, run_python
from igpt_hf import IGPTImageProcessor
from igpt_hf.cli import run_main
from igpt_hf.data.splits import load_splits
from igpt_hf.evaluation.compatibility import seen_images_warning
from igpt_hf.plots import UNKNOWN
from igpt_hf.training.trainer import IGPTTrainer


TINY = ["--num_hidden_layers", "1", "--num_train_epochs", "2", "--num_threads", "1"]
RESULTS = {  # design.md, section 5
    "train_nats_per_image": float,
    "validation_nats_per_image": float,
    "test_nats_per_image": float,
    "test_bits_per_pixel": float,
    "num_parameters": int,
    "epochs": float,
    "stopped": str,
    "train_runtime": float,
    "train_images_per_second": float,
    "data": str,
    "seed": int,
    "splits": str,
    "monotonic_train_loss": bool,
    "monotonic_validation_loss": bool,
}


@pytest.fixture
def script(monkeypatch):
    """Run a script in this process, which spares the imports; it ends as the command would.

    In one thread, since other tests may run beside it.
    """
    monkeypatch.setattr("igpt_hf.distributed.use_all_cores", lambda num_threads=None: 1)

    def main(name: str, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return main


def refusal(script, name: str, *argv) -> str:
    """What a script says when it refuses: Python prints it on stderr, and the exit status is 1."""
    with pytest.raises(SystemExit) as end:
        script(name, *argv)
    message = str(end.value.code)
    assert message.startswith("error: ")
    return message


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    """A cat is a disc, a dog a box, an eel a line; of any size and mode."""
    width, height = rng.integers(10, 40, 2).tolist()
    picture = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(picture)
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    {"cat": draw.ellipse, "dog": draw.rectangle, "eel": draw.line}[kind](box, fill=255)
    return picture.convert(["L", "RGB", "1", "RGBA"][rng.integers(4)])


@pytest.fixture(scope="session")
def animals(tmp_path_factory) -> Path:
    """A folder of one folder per class, with one file that is not an image and one that does not belong."""
    folder, rng = tmp_path_factory.mktemp("data") / "animals", np.random.default_rng(0)
    for kind in ("cat", "dog", "eel"):
        (folder / kind).mkdir(parents=True)
        for i in range(20):
            draw(kind, rng).save(folder / kind / f"{i}.png")
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG, cut off")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="session")
def synthetic_run(tmp_path_factory) -> Path:
    """The main job on the embedded digits, small, with reports to TensorBoard."""
    folder = tmp_path_factory.mktemp("runs") / "synthetic"
    small = ["--image_size", "28", "--max_images", "300", "--per_device_train_batch_size", "32"]
    run(*LAUNCH, "--data", "synthetic", "--output_dir", folder, *TINY, *small, "--report_to", "tensorboard")
    return folder


@pytest.fixture(scope="session")
def animals_flags(animals) -> list:
    return ["--data", animals, "--skip_bad_images", *TINY, "--image_size", "12", "--per_device_train_batch_size", "8"]


@pytest.fixture(scope="session")
def animals_run(animals_flags, tmp_path_factory) -> Path:
    """A model of somebody's own images: 12x12 pixels, three classes; 7 steps in each of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "animals"
    done = run(*LAUNCH, *animals_flags, "--output_dir", folder)
    (folder.parent / "animals.log").write_text(done.stderr, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_run_into_a_pipe_prints_a_line_for_each_epoch_and_a_short_table_without_bars(animals_run):
    log = (animals_run.parent / "animals.log").read_text(encoding="utf-8")
    results = results_of(animals_run)
    assert log.count("\nepoch ") == 2
    assert "\r" not in log and "it/s]" not in log and len(log.splitlines()) < 30
    for split in ("train", "validation", "test"):
        nats, error = (results[f"{split}_nats_per_image{end}"] for end in ("", "_stderr"))
        assert f"{split} {nats:8.2f} ± {error:.2f} nats/image given the class" in log
    assert "best epoch 2 of 2" in log and "all epochs are done" in log
    assert f"next: igpt sample {animals_run}; igpt evaluate {animals_run} --data " in log


def assert_same_results(first: Path, second: Path):
    """The results of two runs, but for their times."""
    times = {"train_runtime", "train_images_per_second"}
    first, second = ({k: v for k, v in results_of(folder).items() if k not in times} for folder in (first, second))
    assert first == second


# --- train.py: what it writes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_says_in_one_line_how_far_the_run_came_and_how_to_go_on(
    script, animals_flags, tmp_path, monkeypatch, capsys
):
    step = IGPTTrainer.training_step

    def interrupted(trainer, *args):
        if trainer.state.global_step == 9:
            raise KeyboardInterrupt
        return step(trainer, *args)

    monkeypatch.setattr(IGPTTrainer, "training_step", interrupted)
    with pytest.raises(SystemExit) as end:
        script("train.py", *animals_flags, "--output_dir", tmp_path / "run")
    assert end.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped at epoch 1.29; go on with the same command and --resume_from_checkpoint true."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthetic_run", "animals_run"])
def test_a_run_leaves_every_file_of_the_contract(request, name):
    folder = request.getfixturevalue(name)
    assert {path.name for path in folder.iterdir()} >= FILES
    assert all((folder / file).stat().st_size for file in FILES)
    assert [path for path in folder.iterdir() if path.name.startswith("checkpoint-")]


@pytest.mark.slow
def test_a_given_test_split_is_recorded_and_evaluated_again(animals, script, tmp_path, capsys):
    for path in animals.rglob("[0-9]*.png"):
        split = "test" if path.stem in ("0", "1") else "train"
        (tmp_path / "data" / split / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "data" / split / path.parent.name)
    data, folder = shutil.make_archive(tmp_path / "animals", "zip", tmp_path / "data"), tmp_path / "run"
    size = ("--image_size", "12", "--per_device_train_batch_size", "8")
    done = run(*LAUNCH, "--data", data, "--output_dir", folder, *TINY, *size)
    words = "test as given with the data; 10% of train cut off class by class for validation, seed 42"
    assert f"splits: {words}" in done.stdout + done.stderr
    assert words in (folder / "README.md").read_text()
    results = results_of(folder)
    assert (results["splits"], results["given_splits"]) == ("given", ["test"])

    def evaluate(*flags) -> tuple[dict, str]:
        script("evaluate.py", folder, "--data", data, "--output", tmp_path / "report.json", *flags)
        return json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().err

    for seed in (42, 7):  # which cuts another validation split from train
        report, said = evaluate("--seed", seed)
        assert report["num_images"] == 6 and "warning" not in said
        assert report["nats_per_image"] == pytest.approx(results["test_nats_per_image"], rel=1e-5)
    assert "give --seed 42" in evaluate("--seed", "7", "--split", "validation")[1]
    assert "with other splits: give --splits auto" in evaluate("--splits", "random")[1]


@pytest.mark.slow
def test_the_sampled_pixels_of_the_test_images_are_those_of_the_splits_seed(animals_flags, animals, script, tmp_path):
    flags = [*animals_flags, "--binarize", "stochastic", "--seed", "3", "--split_seed", "42"]
    run(*LAUNCH, *flags, "--output_dir", tmp_path / "run")
    fixed = ["--data", animals, "--skip_bad_images", "--output", tmp_path / "report.json"]
    script("evaluate.py", tmp_path / "run", "--seed", "42", *fixed)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nats_per_image"] == pytest.approx(results_of(tmp_path / "run")["test_nats_per_image"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthetic_run", "animals_run"])
def test_the_results_have_every_key_and_agree_with_each_other(request, name):
    folder = request.getfixturevalue(name)
    results = results_of(folder)
    assert {key: type(results.get(key)) for key in RESULTS} == RESULTS
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert results["num_parameters"] == model.num_parameters()
    bits = results["test_nats_per_image"] / (model.config.num_pixels * math.log(2))
    assert results["test_bits_per_pixel"] == pytest.approx(bits)
    assert 0 < bits < 1  # better than tossing a coin for each pixel
    assert results["validation_nats_per_image"] < model.config.num_pixels * math.log(2)
    assert (results["epochs"], results["stopped"], results["seed"]) == (2, "epochs", 42)
    assert results["train_runtime"] > 0
    assert results["train_images_per_second"] > 0


def test_the_test_loss_is_the_likelihood_of_the_saved_model_on_the_test_split(animals, animals_run):
    model = AutoModelForCausalLM.from_pretrained(animals_run)
    processor = AutoImageProcessor.from_pretrained(animals_run)
    splits = load_splits(animals, seed=42, skip_bad_images=True)
    for name in ("validation", "test"):
        batch = processor(splits[name]["image"][:], class_labels=splits[name]["label"][:])
        nats = -model.log_likelihood(batch["input_ids"]).mean().item()
        assert results_of(animals_run)[f"{name}_nats_per_image"] == pytest.approx(nats, rel=1e-5)


def test_the_pictures_open_and_have_a_row_per_class_or_part(synthetic_run, animals_run):
    for folder, rows, side in ((synthetic_run, 10, 84), (animals_run, 3, 84)):
        sizes = {}
        for name in ("loss_curve", "samples", "completions"):
            with Image.open(folder / f"{name}.png") as picture:
                picture.load()
                assert len(picture.convert("L").getcolors()) > 1
                sizes[name] = picture.size
        title, headers = 40, 30
        assert sizes["samples"][1] == title + rows * (side + 5) + 5
        assert sizes["completions"][1] == title + headers + 4 * (side + 5) + 5
        assert sizes["loss_curve"] > (300, 200)


def test_there_is_a_sheet_of_samples_for_each_evaluation(animals_run):
    assert sorted(path.name for path in (animals_run / "samples").iterdir()) == ["step-000007.png", "step-000014.png"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthetic_run", "animals_run"])
def test_the_card_is_filled_with_the_facts_of_the_run(request, name):
    folder = request.getfixturevalue(name)
    results, card = results_of(folder), ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["library_name"] == "transformers"
    assert re.findall(r"\{\{|\}\}|\{%|%\}|None|nan", card.text) == []
    assert f"{results['test_nats_per_image']:.2f}" in card.text
    assert f"{results['num_parameters']} parameters" in card.text
    assert re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text) == ["samples.png", "loss_curve.png", "completions.png"]


def test_the_python_in_the_card_runs(synthetic_run, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    code = re.search(r"```python\n(.*?)```", (synthetic_run / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code.group(1), names)
    assert shown == [(28, 28)]
    assert names["nats"].shape == (3,)


def test_class_names_of_the_folders_are_those_of_the_model(animals_run):
    model = AutoModelForCausalLM.from_pretrained(animals_run)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    assert model.config.label2id == {"cat": 0, "dog": 1, "eel": 2}
    assert "cat, dog, eel" in (animals_run / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthetic_run", "animals_run"])
def test_the_saved_model_and_processor_load_and_generate(request, name):
    folder = request.getfixturevalue(name)
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert processor.num_labels == model.config.num_labels
    assert model.config.use_cache
    ids = model.generate(**processor.prompt(class_labels=[0, 2]))
    assert ids.shape == (2, 1 + model.config.num_image_tokens)
    assert len(processor.decode(ids)) == 2


def test_tensorboard_gets_scalars_and_a_sheet_of_samples_at_each_evaluation(synthetic_run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    scalars, sheets = {}, []
    for path in synthetic_run.rglob("events.out.tfevents.*"):
        events = accumulator.EventAccumulator(str(path)).Reload()
        scalars |= {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        sheets += [event.step for tag in events.Tags()["images"] for event in events.Images(tag)]
    assert sheets == [8, 16]
    for split in ("train", "validation"):
        assert [event.step for event in scalars[f"eval/{split}_nats_per_image"]] == [8, 16]
    validation = min(event.value for event in scalars["eval/validation_nats_per_image"])
    assert validation == pytest.approx(results_of(synthetic_run)["validation_nats_per_image"], rel=1e-5)


# --- train.py: going on, starting anew, refusing --------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_same_weights_and_results(animals_flags, animals_run, tmp_path):
    folder = tmp_path / "animals"
    shutil.copytree(animals_run / "checkpoint-7", folder / "checkpoint-7")
    shutil.copytree(animals_run / "checkpoint-14", folder / "checkpoint-14")
    (folder / "checkpoint-14" / "trainer_state.json").unlink()  # written last: the run broke off here
    run(*LAUNCH, *animals_flags, "--output_dir", folder, "--resume_from_checkpoint", "true")
    for name in ("model.safetensors", "checkpoint-14/model.safetensors"):
        first, second = load_file(animals_run / name), load_file(folder / name)
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert_same_results(animals_run, folder)
    assert {path.name for path in folder.iterdir()} >= FILES


@pytest.mark.parametrize("flags", [[], ["--num_train_epochs", "1"], ["--max_steps", "14"]], ids=str)
def test_a_finished_run_that_is_resumed_is_left_as_it_is_with_a_message(
    script, animals_flags, animals_run, tmp_path, caplog, flags
):
    folder = tmp_path / "animals"
    shutil.copytree(animals_run, folder)
    for resume in ("true", "true", folder / "checkpoint-14"):
        script("train.py", *animals_flags, "--output_dir", folder, "--resume_from_checkpoint", resume, *flags)
    assert contents(folder) == contents(animals_run)
    assert caplog.text.count("holds a finished run") == 3
    assert f"give a larger {(flags or ['--num_train_epochs'])[0]}" in caplog.text


def test_a_finished_run_goes_on_where_more_is_asked_for_and_from_an_earlier_checkpoint(
    script, animals_flags, animals_run, tmp_path
):
    folder = tmp_path / "animals"
    shutil.copytree(animals_run, folder)
    resume = ["--output_dir", folder, "--resume_from_checkpoint"]
    script("train.py", *animals_flags, *resume, "true", "--max_steps", "16")
    results = results_of(folder)
    assert (results["stopped"], json.loads((folder / "trainer_state.json").read_text())["global_step"]) == (
        "max_steps",
        16,
    )
    before = contents(folder)
    script("train.py", *animals_flags, *resume, "true", "--max_steps", "16")  # in the middle of an epoch
    assert contents(folder) == before
    script("train.py", *animals_flags, *resume, folder / "checkpoint-14")
    assert (results_of(folder)["stopped"], results_of(folder)["epochs"]) == ("epochs", 2)
    assert (folder / "left-checkpoint-16").is_dir()


def test_a_run_that_ends_before_its_results_are_complete_gets_them_without_another_step(
    script, animals_flags, animals_run, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "animals"
    shutil.copytree(animals_run, folder)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()

    def broken(*args):
        raise OSError("the card could not be written")

    resume = [*animals_flags, "--output_dir", folder, "--resume_from_checkpoint", "true"]
    with monkeypatch.context() as patch:
        patch.setattr("igpt_hf.training.results.make_model_card", broken)
        assert "the card" in refusal(script, "train.py", *resume)
    assert not (folder / "all_results.json").exists()  # it would say that the run is finished
    script("train.py", *resume)
    assert {path.name for path in folder.iterdir()} == {path.name for path in animals_run.iterdir()}
    assert_same_results(folder, animals_run)
    assert (folder / "model.safetensors").read_bytes() == (animals_run / "model.safetensors").read_bytes()
    assert results_of(folder)["train_runtime"] > 0.5 * results_of(animals_run)["train_runtime"]  # not the resume's
    assert "finished run" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "end", "more"),
    [
        # Patience: no evaluation is better where nothing is learned.
        (["--early_stopping_patience", "1"], "early_stopping", ["--early_stopping_patience", "2"]),
        (["--max_minutes", "1e-9"], "max_minutes", ["--max_minutes", "9"]),
    ],
    ids=["patience", "minutes"],
)
def test_a_run_that_stopped_early_is_finished_until_it_gets_more(
    script, animals_flags, tmp_path, caplog, first, end, more
):
    rates = ["--learning_rate", "0", "--muon_learning_rate", "0", "--num_train_epochs", "4"]
    command = ["train.py", *animals_flags, *rates, "--output_dir", tmp_path]
    script(*command, *first)
    assert results_of(tmp_path)["stopped"] == end
    epochs, before = results_of(tmp_path)["epochs"], contents(tmp_path)
    script(*command, *first, "--resume_from_checkpoint", "true")
    assert contents(tmp_path) == before
    assert f"give a larger {first[0]}" in caplog.text
    script(*command, *more, "--resume_from_checkpoint", "true")
    assert results_of(tmp_path)["epochs"] > epochs


def test_a_finished_run_is_pushed_if_that_is_asked_for(script, animals_flags, animals_run, monkeypatch, caplog):
    monkeypatch.setattr(
        "igpt_hf.training.trainer.push_folder", lambda folder, repo, **about: f"{folder.name} to {repo}"
    )
    before = contents(animals_run)
    flags = ["--output_dir", animals_run, "--resume_from_checkpoint", "true", "--push_to_hub", "true"]
    script("train.py", *animals_flags, *flags, "--hub_model_id", "user/name")
    assert "pushed: animals to user/name" in caplog.text
    assert contents(animals_run) == before


def test_flags_that_change_nothing_are_named_at_the_start(script, animals_flags, animals_run, caplog):
    refusal(script, "train.py", *animals_flags, "--output_dir", animals_run, "--eval_steps", "20")
    assert caplog.text == ""  # a refusal comes first, and alone
    flags = ["--output_dir", animals_run.parent / "none", "--data", "nowhere.cdb", "--eval_steps", "20"]
    refusal(script, "train.py", *animals_flags, *flags)
    assert "warning: --eval_steps has no effect without --eval_strategy steps." in caplog.text


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(script, animals_flags, animals_run):
    before = contents(animals_run)
    message = refusal(script, "train.py", *animals_flags, "--output_dir", animals_run)
    assert "holds a run already" in message
    assert "--overwrite_output_dir true" in message
    assert contents(animals_run) == before


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--report_to", "clearml"], "--report_to clearml: clearml is not installed"),
        (["--report_to", "paper"], "paper is not supported"),
        (["--use_muon", "false", "--optim", "adamw_torch", "--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
    ],
)
def test_a_flag_that_is_refused_late_does_not_cost_the_run_that_was_to_be_overwritten(
    script, animals_flags, animals_run, flags, reason
):
    before = contents(animals_run)
    flags = ["--output_dir", animals_run, "--overwrite_output_dir", "true", *flags]
    message = refusal(script, "train.py", *animals_flags, *flags)
    assert reason in message
    assert "checkpoint-" not in message  # the old run's are not this one's
    assert contents(animals_run) == before


def test_the_old_run_is_overwritten_once_the_new_one_has_begun(script, animals_flags, animals_run, tmp_path):
    shutil.copytree(animals_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-99").mkdir()
    flags = ["--output_dir", tmp_path / "run", "--overwrite_output_dir", "true", "--max_steps", "2"]
    every_two = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
    script("train.py", *animals_flags, *flags, *every_two)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step-000002.png"]
    assert (tmp_path / "run" / "data.png").is_file()


@pytest.mark.slow
def test_bad_data_ends_the_command_with_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, SCRIPTS / "train.py", "--data", "nowhere.cdb", "--output_dir", tmp_path / "run"]
    done = run(*command, check=False)  # not by `accelerate launch`, which adds a traceback of its own
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: nowhere.cdb: no such file."
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nowhere/at/all"], ["nowhere/at/all", "does not exist"]),
        (["--data", "{animals}"], ["broken.png", "skip_bad_images"]),
        (["--data", "{animals}", "--skip_bad_images", "--max_images", "5"], ["max_images=5 is too small"]),
        (
            ["--data", "{animals}", "--skip_bad_images", "--preset", "xxl"],
            ["unknown preset", "xxs, xxs-wide, xs, s"],
        ),
        (["--data", "{animals}", "--skip_bad_images", "--image_size", "29"], ["multiple of patch_size=2", "29"]),
        (["--data", "{animals}", "--skip_bad_images", "--threshold", "128"], ["threshold", "128"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml: no such file"]),
        (["--resume_from_checkpoint", "true"], ["no complete checkpoint to resume from"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_answered_with_an_error(script, animals, tmp_path, flags, words):
    flags = [flag.replace("{animals}", str(animals)) for flag in flags]
    message = refusal(script, "train.py", *flags, "--output_dir", tmp_path / "run")
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "run").exists()


# --- sample.py ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sample(script, animals_run, tmp_path):
    """Run scripts/sample.py on the animals; returns the arrays."""

    def main(*argv) -> dict[str, np.ndarray]:
        script("sample.py", animals_run, "--output", tmp_path / "samples.png", "--npz", tmp_path / "a.npz", *argv)
        return dict(np.load(tmp_path / "a.npz"))

    return main


def test_samples_are_drawn_where_the_user_is(animals_run, tmp_path):
    done = run_python(SCRIPTS / "sample.py", animals_run, "--labels", "eel", "0", cwd=tmp_path)
    assert os.listdir(tmp_path) == ["samples.png"]
    assert "Traceback" not in done.stderr
    with Image.open(tmp_path / "samples.png") as picture:
        names = 30
        assert picture.size == (2 * (36 + 2) + 2, names + 36 + 2 * 2)  # two images of 12x12, three times as large


@pytest.mark.parametrize("num_names", [0, 1, 2, 3, 10, 11, 32, 33])
@pytest.mark.parametrize("picture", [None, Image.new("L", (4, 4))], ids=["samples", "completions"])
def test_the_name_above_a_column_is_the_class_of_all_images_below_it(num_names, picture):
    images = [Image.new("L", (4, 4), number) for number in range(70)]
    names = [f"class {number}" for number in range(num_names)]
    grid = runpy.run_path(str(SCRIPTS / "sample.py"))["sample_grid"](images, names, picture)
    first = 0 if picture is None else 1
    shown = [image for row in grid.rows for image in row[first:]]
    assert shown == images
    if num_names == 1:
        assert grid.title == "Class class 0"
    if 2 <= num_names <= 32:
        for row in grid.rows:
            for column, image in enumerate(row[first:], start=first):
                assert grid.headers[column] == names[image.getpixel((0, 0)) % num_names]
    else:
        assert set(grid.headers) <= {0} and len(grid.rows[0]) == 10 + first


def test_the_arrays_are_the_images_their_classes_ids_and_exact_nats(sample, animals_run):
    arrays = sample("--labels", "cat", "2", "cat", "--num", "5")
    model = AutoModelForCausalLM.from_pretrained(animals_run)
    processor = AutoImageProcessor.from_pretrained(animals_run)
    assert {name: array.shape for name, array in arrays.items()} == {
        "images": (5, 12, 12),
        "labels": (5,),
        "ids": (5, 37),
        "nats": (5,),
    }
    assert arrays["labels"].tolist() == [0, 2, 0, 0, 2]  # in turn
    assert arrays["ids"][:, 0].tolist() == [16, 18, 16, 16, 18]
    assert set(np.unique(arrays["images"])) == {0, 1}
    assert np.array_equal(processor.decode_pixels(arrays["ids"]), arrays["images"])
    nats = -model.log_likelihood(torch.from_numpy(arrays["ids"])).numpy()
    assert np.allclose(arrays["nats"], nats)


def test_ten_images_of_any_class_are_the_default(sample):
    arrays = sample()
    assert arrays["labels"].tolist() == [-1] * 10
    assert arrays["ids"][:, 0].tolist() == [19] * 10


@pytest.mark.parametrize("flags", [[], ["--guidance_scale", "2", "--temperature", "0.8", "--top_p", "0.9"]], ids=str)
def test_the_seed_decides_the_samples(sample, flags):
    first, again, other = (sample("--labels", "cat", "--num", "6", *flags, "--seed", s)["ids"] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_temperature_to_speak_of_gives_the_likeliest_image_each_time(sample):
    images = sample("--labels", "dog", "--num", "4", "--temperature", "0.0001")["images"]
    assert (images == images[0]).all()


def given_pixels(figure: Path) -> np.ndarray:
    """The 12x12 pixels of the first image of a figure with one row, three times as large."""
    levels = np.asarray(Image.open(figure).convert("L"))
    return levels[-38:-2, 2:38][1::3, 1::3]


@pytest.mark.parametrize(("flags", "kept"), [(["--keep_rows", "8"], 8), ([], 6)], ids=["8 rows", "half by default"])
@pytest.mark.parametrize("labels", [["--labels", "cat", "dog"], []], ids=["of classes", "of any class"])
def test_a_completion_keeps_the_upper_rows_of_the_picture(sample, animals, animals_run, tmp_path, flags, kept, labels):
    path = animals / "cat" / "0.png"
    arrays = sample("--complete", path, *flags, *labels, "--num", "3", "--batch_size", "2")
    processor = AutoImageProcessor.from_pretrained(animals_run)
    picture = processor.decode_pixels(processor.tokenize(path))
    assert arrays["images"].shape == (3, 12, 12)
    assert (arrays["images"][:, :kept] == picture[:, :kept]).all()
    assert not (arrays["images"][:, kept:] == picture[:, kept:]).all()
    assert (given_pixels(tmp_path / "samples.png")[:kept] == picture[0, :kept] * 255).all()
    assert (given_pixels(tmp_path / "samples.png")[kept:] == UNKNOWN).all()


@pytest.mark.parametrize("is_alpha", [False, True], ids=["a mask", "alpha"])
def test_a_completion_keeps_the_pixels_that_the_mask_does_not_mark(sample, animals_run, tmp_path, is_alpha):
    rng = np.random.default_rng(0)
    pixels, unknown = (rng.random((12, 12)) < 0.5 for _ in range(2))
    picture = np.stack([pixels * 255] * 3 + [~unknown * 255], axis=2).astype(np.uint8)
    Image.fromarray(picture if is_alpha else picture[..., :3]).save(tmp_path / "picture.png")
    Image.fromarray(unknown).save(tmp_path / "mask.png")
    mask = "alpha" if is_alpha else tmp_path / "mask.png"
    flags = ("--complete", tmp_path / "picture.png", "--mask", mask, "--labels", "cat", "--num_particles", "5")
    arrays = sample(*flags, "--num", "3", "--batch_size", "2", "--min_posterior", "0.1")
    shown = IGPTImageProcessor.from_pretrained(animals_run).to_gray(tmp_path / "picture.png") > 127
    assert (arrays["images"] == shown)[:, ~unknown].all()
    assert (given_pixels(tmp_path / "samples.png") == np.where(unknown, UNKNOWN, shown[0] * 255)).all()
    assert len({image.tobytes() for image in arrays["images"]}) > 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--labels", "cow"], ["--labels cow", "cat, dog, eel"]),
        (["--labels", "cat", "3"], ["--labels 3", "cat, dog, eel"]),
        (["--labels", "-1"], ["-1"]),
        (["--num", "0"], ["--num must be at least 1, got 0"]),
        (["--batch_size", "0"], ["--batch_size must be at least 1, got 0"]),
        (["--num_particles", "0"], ["--num_particles must be at least 1, got 0"]),
        (["--num_particles", "9"], ["--num_particles goes with --mask"]),
        (["--mask", "mask.png"], ["--mask mask.png", "--complete IMAGE"]),
        (["--mask", "alpha", "--complete", "a.png", "--keep_rows", "2"], ["--mask and --keep_rows both say"]),
        (["--output", "nowhere/samples.png"], ["nowhere"]),
        (["--npz", "nowhere/samples.npz"], ["nowhere"]),
        (["--complete", "nowhere.png"], ["nowhere.png"]),
        (["--complete", "{animals}/dog/broken.png"], ["broken.png"]),
        (["--keep_rows", "6"], ["--keep_rows", "--complete"]),
        (["--complete", "{animals}/cat/0.png", "--keep_rows", "0"], ["keep_rows", "between 2 and 10", "0"]),
        (["--complete", "{animals}/cat/0.png", "--keep_rows", "5"], ["keep_rows", "multiple of patch_size=2", "5"]),
        (["--complete", "{animals}/cat/0.png", "--keep_rows", "12"], ["keep_rows", "between 2 and 10", "12"]),
        (["--complete", "{animals}/dog/broken.png", "--mask", "alpha"], ["--complete", "broken.png"]),
        (["--complete", "{animals}/cat/0.png", "--mask", "{animals}/dog/broken.png"], ["--mask", "broken.png"]),
        (["--complete", "{animals}"], ["--complete {animals}", "directory"]),
        (["--temperature", "0"], ["--temperature must be positive, got 0"]),
        (["--top_p", "-1"], ["--top_p must be above 0 and at most 1, got -1"]),
        (["--top_p", "2"], ["--top_p must be above 0 and at most 1, got 2"]),
        (["--guidance_scale", "-1"], ["--guidance_scale must be a number from 0 on, got -1"]),
        (["--guidance_scale", "inf"], ["--guidance_scale must be a number from 0 on, got inf"]),
        (["--temperature", "inf"], ["--temperature must be positive, got inf"]),
        (["--min_posterior", "1.5"], ["--min_posterior is a probability, got 1.5"]),
        (["--output", "samples.xyz"], ["--output samples.xyz", ".png"]),
        (["--output", "samples"], ["--output samples", ".png"]),
        (["--output", "samples.h5"], ["--output samples.h5", ".png"]),
        (["--output", "{animals}/cat/0.png", "--complete", "{animals}/cat/0.png"], ["is what the command reads"]),
        (["--seed", "-1"], ["--seed must be from 0 to 4294967295, got -1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_bad_wish_is_answered_with_an_error(script, animals, animals_run, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [flag.replace("{animals}", str(animals)) for flag in flags]
    message = refusal(script, "sample.py", animals_run, *flags)
    assert [word for word in words if word.replace("{animals}", str(animals)) not in message] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--guidance_scale", "2"], ["--min_posterior", "0.5"]])
def test_what_needs_a_class_is_said_to_have_no_effect_without_one(script, animals_run, tmp_path, capsys, flags):
    command = ["sample.py", animals_run, "--num", "1", "--output", tmp_path / "a.png", *flags]
    script(*command)
    assert f"warning: {flags[0]} has no effect without --labels." in capsys.readouterr().err
    script(*command, "--labels", "cat")
    assert "warning" not in capsys.readouterr().err


def test_a_misspelled_model_of_the_package_is_answered_with_those_that_there_are(script):
    assert "In the package are mnist-xs, mnist-xxs, persian-digits." in refusal(script, "sample.py", "mnist_xs")


@pytest.mark.parametrize("model", ["nowhere", "/nowhere", "user/nowhere", "{animals}"])
def test_a_model_that_is_not_there_is_named(script, animals, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    model = model.replace("{animals}", str(animals))
    assert model in refusal(script, "sample.py", model)


def test_without_a_model_the_bundled_one_is_sampled(script, tmp_path):
    script("sample.py", "--labels", "0", "7", "--output", tmp_path / "samples.png", "--npz", tmp_path / "samples.npz")
    arrays = np.load(tmp_path / "samples.npz")
    assert arrays["images"].shape == (2, 28, 28) and arrays["labels"].tolist() == [0, 7]
    assert arrays["nats"].max() < 150  # 543 for a coin toss at each pixel


# --- evaluate.py ----------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluate(script, animals_run, animals_flags, tmp_path):
    """Run scripts/evaluate.py on the animals; returns the report."""
    data = animals_flags[animals_flags.index("--data") + 1]

    def main(*argv) -> dict:
        script("evaluate.py", animals_run, "--data", data, "--output", tmp_path / "report.json", *argv)
        return json.loads((tmp_path / "report.json").read_text())

    return main


def test_the_test_split_of_the_run_has_the_nats_that_the_run_reported(evaluate, animals_run):
    report, results = evaluate("--skip_bad_images"), results_of(animals_run)
    assert math.isclose(report["nats_per_image"], results["test_nats_per_image"], rel_tol=1e-5)
    assert report["nats_per_image_marginal"] <= report["nats_per_image"] + math.log(3) + 1e-6
    assert report.keys() >= {"num_images", "nats_per_image_unconditional", "bits_per_pixel", "bayes_accuracy"}


def test_a_test_split_that_the_model_may_have_seen_is_warned_of(evaluate, capsys):
    evaluate("--skip_bad_images", "--seed", "42")
    evaluate("--skip_bad_images", "--seed", "7", "--split", "all")  # which nobody takes for new images
    assert "warning" not in capsys.readouterr().err
    evaluate("--skip_bad_images", "--seed", "7")
    assert "It may have seen images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "arguments", "words"),
    [
        ({}, ("synthetic", 42), None),
        ({}, ("other", 1), None),
        ({}, ("synthetic", 1), None),  # which are other digits
        ({"data": "digits"}, ("digits", 1), "give --seed 42"),
        ({"max_images": 9}, ("synthetic", 42), "--max_images 9"),
        ({"max_images": 9}, ("synthetic", 42, 9), None),
        ({"streaming": True}, ("synthetic", 42), "streamed"),
        ({}, ("synthetic", 42, None, ("test",)), "give --splits random"),
        ({"given_splits": ["test"]}, ("synthetic", 42), "give --splits auto"),
        ({"given_splits": ["test"], "data": "digits"}, ("digits", 1, None, ("test",)), None),  # the same test images
        ({"given_splits": ["test"], "data": "digits"}, ("digits", 1, None, ("test",), "validation"), "--seed 42"),
    ],
)
def test_it_is_known_whether_a_run_has_seen_a_test_split(tmp_path, facts, arguments, words):
    results = {"data": "synthetic", "split_seed": 42, "max_images": None, "streaming": False} | facts
    (tmp_path / "all_results.json").write_text(json.dumps(results))
    for folder in (tmp_path, tmp_path / "checkpoint-30"):
        warning = seen_images_warning(str(folder), *arguments)
        assert warning is None if words is None else words in warning


def test_all_images_are_those_of_the_three_splits(evaluate):
    counts = [
        evaluate("--skip_bad_images", "--split", split)["num_images"]
        for split in ("train", "validation", "test", "all")
    ]
    assert counts[3] == sum(counts[:3])
    assert evaluate("--skip_bad_images", "--split", "all", "--max_images", "4")["num_images"] == 4


def test_classes_that_the_model_does_not_know_are_named(script, animals_run, tmp_path):
    message = refusal(script, "evaluate.py", animals_run, "--output", tmp_path / "report.json")  # synthetic digits
    assert "a class that the model does not know: '0' is not a class of this model (cat, dog, eel)" in message
    assert "cat, dog, eel" in message


@pytest.fixture(scope="session")
def many_animals(tmp_path_factory) -> Path:
    """More of the same animals: 204 images for training, 24 for validation, 12 for the test."""
    folder, rng = tmp_path_factory.mktemp("data") / "many", np.random.default_rng(1)
    for kind in ("cat", "dog", "eel"):
        (folder / kind).mkdir(parents=True)
        for i in range(80):
            draw(kind, rng).save(folder / kind / f"{i}.png")
    return folder


def test_an_evaluation_with_samples_has_every_key_a_picture_and_a_table(
    script, animals_run, many_animals, tmp_path, capsys
):
    output = tmp_path / "report.json"
    script("evaluate.py", animals_run, "--data", many_animals, "--samples", "15", "--output", output)
    report = json.loads(output.read_text())
    numbers = {"num_images", "nats_per_image", "nats_per_image_marginal", "nats_per_image_unconditional"}
    numbers |= {"bits_per_pixel", "bits_per_image_marginal", "bayes_accuracy", "classifier_test_accuracy"}
    numbers |= {"sample_accuracy", "fid", "fid_real_floor", "precision", "recall", "density", "coverage", "novelty"}
    numbers |= {"train_on_samples_accuracy", "two_sample_accuracy", "exact_copies", "exact_copies_test"}
    assert {name for name in numbers if not isinstance(report.get(name), (int, float))} == set()
    assert (report["num_images"], report["num_samples"], report["num_compared"]) == (12, 15, 12)
    assert report["codecs"].keys() == {"png", "webp", "group4_tiff"}
    assert np.sum(report["confusion_matrix"]) == 12
    assert sum(report["calibration"]["count"]) == 12 * 12 * 12
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width > 1000
    table = capsys.readouterr().out
    for number in (f"{report['nats_per_image']:.3f}", f"{report['fid']:.3f}", f"{report['sample_accuracy']:.2%}"):
        assert number in table


def test_the_report_is_the_same_each_time(script, animals_run, many_animals, tmp_path):
    reports = []
    for _ in range(2):
        flags = ["--samples", "12", "--seed", "1", "--output", tmp_path / "report.json"]
        script("evaluate.py", animals_run, "--data", many_animals, *flags)
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    assert reports[0] == reports[1]


@pytest.fixture
def one_size(tmp_path) -> Path:
    """Pictures of 16x16 pixels, of classes that the model knows."""
    for kind in ("cat", "dog"):
        (tmp_path / "squares" / kind).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (16, 16), 40 * i).save(tmp_path / "squares" / kind / f"{i}.png")
    return tmp_path / "squares"


@pytest.mark.parametrize("name", ["evaluate.py", "probe.py"])
def test_data_that_does_not_fit_the_model_is_refused_before_any_work(script, name, animals_run, one_size, tmp_path):
    output = tmp_path / "report.json"
    message = refusal(script, name, animals_run, "--data", one_size, "--output", output)
    assert "the images are 16x16, the model's are 12x12" in message
    assert not output.exists()


def test_pictures_of_another_size_are_fitted_where_that_is_asked_for(script, animals_run, one_size, tmp_path):
    flags = ["--data", one_size, "--split", "all", "--resize", "--output", tmp_path / "report.json"]
    script("evaluate.py", animals_run, *flags)
    assert json.loads((tmp_path / "report.json").read_text())["num_images"] == 8


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--samples", "0"], ["--samples must be at least 1, got 0"]),
        (["--samples", "9"], ["--samples 9", "12 test", "24 validation", "at least 10"]),
        (["--max_images", "0"], ["--max_images must be at least 1, got 0"]),
        (["--output", "nowhere/report.json"], ["nowhere"]),
        (["--output", "report.png"], ["report.png", "JSON"]),
        (["--output", "report.PDF"], ["report.PDF", "JSON"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_evaluation_that_cannot_be_done_is_refused(
    script, animals_run, many_animals, tmp_path, monkeypatch, flags, words
):
    monkeypatch.chdir(tmp_path)
    message = refusal(script, "evaluate.py", animals_run, "--data", many_animals, *flags)
    assert [word for word in words if word not in message] == []
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_refused(script, animals_run, many_animals, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(animals_run, broken, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    message = refusal(script, "evaluate.py", broken, "--data", many_animals, "--output", tmp_path / "report.json")
    assert "model.norm.weight are not all numbers" in message


def without_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.0.mlp" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def of_another_size(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_size": 32, "intermediate_size": 128}))


def with_an_impossible_patch(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"patch_size": 7}))


def with_a_size_in_words(folder):
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_size": "twelve"}))


DAMAGES = {without_a_layer: "no weights for model.layers.0.mlp.", cut_off: "cannot be loaded as an Image GPT"}
DAMAGES |= dict.fromkeys((of_another_size, with_an_impossible_patch, with_a_size_in_words), "cannot be loaded as")


@pytest.mark.parametrize(("damage", "words"), DAMAGES.items(), ids=[damage.__name__ for damage in DAMAGES])
def test_a_damaged_checkpoint_is_refused_in_one_line(script, animals_run, tmp_path, damage, words):
    broken = tmp_path / "broken"
    shutil.copytree(animals_run, broken, ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(broken)
    message = refusal(script, "sample.py", broken, "--output", tmp_path / "samples.png")
    assert words in message
    assert not (tmp_path / "samples.png").exists()


def test_a_processor_of_another_model_is_refused(script, animals_run, many_animals, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(animals_run, mixed, ignore=shutil.ignore_patterns("checkpoint-*"))
    settings = json.loads((mixed / "preprocessor_config.json").read_text())
    (mixed / "preprocessor_config.json").write_text(json.dumps(settings | {"image_size": 28}))
    message = refusal(script, "evaluate.py", mixed, "--data", many_animals, "--output", tmp_path / "report.json")
    assert "image_size=12" in message
    assert "image_size=28" in message


@pytest.fixture(scope="session")
def cats(tmp_path_factory) -> Path:
    """A folder with one class folder: 240 pictures, of which 24 are for validation and 12 for the test."""
    folder, rng = tmp_path_factory.mktemp("data") / "cats", np.random.default_rng(1)
    (folder / "cat").mkdir(parents=True)
    for i in range(240):
        draw("cat", rng).save(folder / "cat" / f"{i}.png")
    return folder


NEED_CLASSES = {"bayes_accuracy", "confusion_matrix"}
NEED_CLASSES |= {"sample_accuracy", "sample_accuracy_stderr", "classifier_test_accuracy"}
NEED_CLASSES |= {"train_on_samples_accuracy", "train_on_real_accuracy"}


@pytest.mark.slow
def test_one_class_is_trained_sampled_and_evaluated_and_what_needs_classes_is_null(script, cats, tmp_path, capsys):
    model, output = tmp_path / "run", tmp_path / "report.json"
    flags = [*TINY, "--image_size", "12", "--per_device_train_batch_size", "32"]
    script("train.py", "--data", cats, "--output_dir", model, *flags)
    assert {path.name for path in model.iterdir()} >= FILES
    results = results_of(model)
    assert [name for name, value in results.items() if isinstance(value, float) and not math.isfinite(value)] == []
    script("sample.py", model, "--labels", "cat", "--num", "3", "--output", tmp_path / "samples.png")
    script("evaluate.py", model, "--data", cats, "--samples", "10", "--output", output)
    report = json.loads(output.read_text())
    assert {name for name, value in report.items() if value is None} == NEED_CLASSES
    assert math.isclose(report["nats_per_image"], results["test_nats_per_image"], rel_tol=1e-5)
    assert report["nats_per_image_marginal"] == pytest.approx(report["nats_per_image"], rel=1e-12)
    assert list(report["nats_per_class"]) == ["cat"]
    assert report.keys() >= {"fid", "fid_real_floor", "precision", "recall", "density", "coverage", "novelty"}
    table = capsys.readouterr().out
    assert "Bayes" not in table
    assert "two-sample test accuracy" in table
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width > 1000


def test_one_class_of_several_that_the_model_knows_is_evaluated(script, animals_run, cats, tmp_path):
    output = tmp_path / "report.json"
    script("evaluate.py", animals_run, "--data", cats, "--split", "all", "--output", output)
    report = json.loads(output.read_text())
    assert (report["num_images"], report["bayes_accuracy"], report["confusion_matrix"]) == (240, None, None)
    assert report["nats_per_image_marginal"] == pytest.approx(report["nats_per_image"], rel=1e-12)
    script("evaluate.py", animals_run, "--data", cats, "--split", "all", "--prior", "uniform", "--output", output)
    report = json.loads(output.read_text())  # now other classes could be told, too
    assert report["confusion_matrix"][0][0] / 240 == report["bayes_accuracy"]


# --- score.py -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_score_writes_the_nats_the_class_and_the_rank_of_each_file(script, animals, animals_run, tmp_path):
    files = sorted((animals / "eel").glob("*.png"))
    script("score.py", animals_run, animals / "cat" / "0.png", animals / "eel", "--output", tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["file"] for row in rows] == [str(path) for path in (animals / "cat" / "0.png", *files)]
    model = AutoModelForCausalLM.from_pretrained(animals_run)
    ids = AutoImageProcessor.from_pretrained(animals_run)(files[3])["input_ids"]
    posterior, nats = model.class_posterior(ids)[0], -model.class_log_likelihoods(ids)[0].logsumexp(0) + math.log(3)
    row = rows[4]
    assert float(row["nats"]) == pytest.approx(nats.item(), abs=1e-3)
    assert float(row["bits_per_pixel"]) == pytest.approx(nats.item() / (144 * math.log(2)), abs=1e-5)
    assert row["label"] == ["cat", "dog", "eel"][posterior.argmax()]
    assert float(row["posterior"]) == pytest.approx(posterior.max().item(), abs=1e-4)
    assert len(model.config.nats_quantiles) == 101
    assert 0 <= float(row["percentile"]) <= 100


@pytest.mark.slow
def test_score_names_the_file_that_is_not_an_image(script, animals, animals_run, tmp_path):
    broken = animals / "dog" / "broken.png"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    for path, words in (
        (broken, "cannot be decoded"),
        (tmp_path / "no", "does not exist"),
        (tmp_path, "holds no images"),
        (tmp_path / "a.npy", "igpt evaluate and igpt compress take arrays"),
        ("", "the name of an image or a folder is empty"),
    ):
        message = refusal(script, "score.py", animals_run, path, "--output", tmp_path / "scores.csv")
        assert str(path) in message and words in message


@pytest.mark.slow
def test_score_reads_images_unlike_the_data_by_themselves_and_leaves_out_bad_ones_where_asked(
    script, animals, animals_run, tmp_path, caplog
):
    picture = Image.open(animals / "cat" / "0.png").convert("L")
    folder = tmp_path / "scans"
    folder.mkdir()
    picture.save(folder / "a.png")
    ImageOps.invert(picture).save(folder / "b.png")
    clear = Image.new("RGBA", picture.size)
    clear.paste((0, 0, 0, 255), mask=picture)
    clear.save(folder / "c.png")
    Image.new("L", picture.size, 255).save(folder / "d.png")
    picture.save(folder / "e.tif", save_all=True, append_images=[picture])
    shutil.copy(animals / "dog" / "broken.png", folder / "f.png")
    (folder / "._a.png").write_bytes(b"of another system")
    if sys.platform == "linux":  # other systems have no such names
        picture.save(os.fsencode(folder) + b"/g\xe9.png", format="PNG")
    flags = ["score.py", animals_run, folder, "--output", tmp_path / "scores.csv"]
    assert f"{folder / 'd.png'}: nothing is left of the image" in (message := refusal(script, *flags))
    assert "--skip_bad_images" in message
    script(*flags, "--skip_bad_images")
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    names = ["a.png", "b.png", "c.png", *(["g\\xe9.png"] if sys.platform == "linux" else [])]
    assert [Path(row["file"]).name for row in rows] == names
    assert [row["read"] for row in rows[:3]] == ["as data", "by itself", "by itself"]
    assert len({row["nats"] for row in rows}) == 1
    assert [name for name in ("d.png", "e.tif has 2 frames", "f.png") if name not in caplog.text] == []
    flags = ["score.py", animals_run, folder / "d.png", "--skip_bad_images", "--output", tmp_path / "s"]
    assert "none of the 1 files" in refusal(script, *flags)


@pytest.mark.parametrize("flags", [["--preset", "xss"], ["--image_size", "27"], ["--patch_size", "8"]], ids=" ".join)
def test_flags_of_no_model_are_refused_before_the_data_is_read(script, tmp_path, flags):
    message = refusal(script, "train.py", "--data", tmp_path / "nowhere", "--output_dir", tmp_path / "run", *flags)
    assert "the flags describe no model" in message and flags[1] in message


def test_images_of_more_tokens_than_attention_has_room_for_are_refused_before_the_data_is_read(script, tmp_path):
    flags = ["--data", tmp_path / "nowhere", "--output_dir", tmp_path / "run", "--image_size", 514]
    message = refusal(script, "train.py", *flags)
    assert "--image_size 514 with --patch_size 2 makes 66,049 tokens" in message and "65,536 are the most" in message


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capfd):
    def closed():
        raise BrokenPipeError(32, "Broken pipe")

    kept = os.dup(1)
    try:
        with pytest.raises(SystemExit) as end:
            run_main(closed)
    finally:
        os.dup2(kept, 1)
    assert end.value.code == 141 and capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [OverflowError("too large"), MemoryError("too large"), ImportError("too large")])
def test_numbers_out_of_range_and_packages_that_are_not_there_are_one_line(error):
    def fail():
        raise error

    with pytest.raises(SystemExit, match="error: too large"):
        run_main(fail)


@pytest.mark.parametrize("length", [["--num_train_epochs", "1"], ["--max_steps", "4"]], ids=" ".join)
def test_a_training_without_a_batch_is_refused(script, animals, tmp_path, length):
    flags = ["--data", animals, "--output_dir", tmp_path / "run", "--skip_bad_images", "--image_size", "12"]
    flags += ["--num_hidden_layers", "1", "--dataloader_drop_last", "true", *length]
    message = refusal(script, "train.py", *flags, "--per_device_train_batch_size", "500")
    assert "--dataloader_drop_last leaves nothing of 51 training images in batches of 500" in message
    assert not (tmp_path / "run" / "data.png").exists()


@pytest.mark.slow
def test_what_a_pipe_cannot_take_of_a_name_is_written_as_its_code(tmp_path):
    for name in ("الف", "ب"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            picture = Image.new("L", (28, 28))
            picture.paste(255, (10, 4 + i, 18, 20 + i + len(name)))
            picture.save(tmp_path / "data" / name / f"{i}.png")
    command = (SCRIPTS / "data.py", tmp_path / "data", "--output", tmp_path / "data.png")
    told = run_python(*command, env=os.environ | {"PYTHONIOENCODING": "cp1252"}).stdout  # as of a pipe on Windows
    assert r"\u0628" in told and (tmp_path / "data.png").is_file()


# --- compress.py, decompress.py -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_compressed_comes_back_from_the_same_model_alone(script, animals, animals_run, tmp_path, capsys):
    pytest.importorskip("constriction")
    zoo, packed, out = tmp_path / "zoo", tmp_path / "a.igc", tmp_path / "out"
    shutil.copytree(animals, zoo, ignore=shutil.ignore_patterns("broken.png", "notes.txt"))
    script("compress.py", animals_run, zoo, zoo / "eel" / "3.png", "--output", packed)
    size, output = packed.stat().st_size, capsys.readouterr().out
    assert f"61 images, 12x12 black and white -> {packed}\n{size:,} bytes, {8 * size / 61:.1f} bits/image" in output
    script("decompress.py", animals_run, packed, "--output", out)
    assert f"61 images -> {out}" in capsys.readouterr().out
    assert [len(list((out / kind).iterdir())) for kind in ("cat", "dog", "eel")] == [20, 20, 20]
    processor = AutoImageProcessor.from_pretrained(animals_run)
    seen = np.asarray(processor.decode(processor(zoo / "eel" / "3.png")["input_ids"])[0])
    assert (np.asarray(Image.open(out / "00060.png")) == seen).all()  # a single file: its class is not known

    assert f"{out} exists and is not empty" in refusal(script, "decompress.py", animals_run, packed, "--output", out)
    packed.write_bytes(packed.read_bytes()[:-1])
    message = refusal(script, "decompress.py", animals_run, packed, "--output", tmp_path / "other")
    assert f"{packed}: the file ends early" in message and not (tmp_path / "other").exists()
    message = refusal(script, "compress.py", animals_run, animals, "--output", tmp_path / "b.igc")
    assert "broken.png" in message
    picture = zoo / "eel" / "3.png"
    for existing in (packed, picture):
        before = existing.read_bytes()
        message = refusal(script, "compress.py", animals_run, picture, "--output", existing)
        assert f"--output {existing} exists: name another file, or delete it" in message
        assert existing.read_bytes() == before
    message = refusal(script, "decompress.py", animals_run, tmp_path / "no.igc", "--output", tmp_path / "other")
    assert "no.igc" in message


def test_an_archive_that_would_hold_nothing_of_what_is_on_the_images_is_refused(script, animals_run, tmp_path):
    pytest.importorskip("constriction")
    folder = tmp_path / "faint" / "cat"
    folder.mkdir(parents=True)
    for number in range(8):
        picture = Image.new("L", (20, 20), 0)
        picture.paste(9, (number, 4, number + 8, 14))  # far below the level of the animals
        picture.save(folder / f"{number}.png")
    message = refusal(script, "compress.py", animals_run, folder.parent, "--output", tmp_path / "a.igc")
    assert "faint: to the model, 8 of 8 images are empty, and what is on them would be lost" in message
    assert not (tmp_path / "a.igc").exists()
    for path in folder.iterdir():
        Image.new("L", (20, 20), 0).save(path)  # nothing is on them
    script("compress.py", animals_run, folder.parent, "--output", tmp_path / "a.igc")
    assert (tmp_path / "a.igc").stat().st_size > 0


# --- probe.py -------------------------------------------------------------------------------------------------------


def test_a_probe_is_fitted_for_each_layer_and_validation_chooses(script, animals_run, many_animals, tmp_path, capsys):
    output = tmp_path / "probe.json"
    script("probe.py", animals_run, "--data", many_animals, "--output", output)
    report = json.loads(output.read_text())
    assert [layer["layer"] for layer in report["layers"]] == [0, 1]  # the embeddings and one block
    best = report["layers"][report["best_layer"]]
    assert best["validation_accuracy"] == max(layer["validation_accuracy"] for layer in report["layers"])
    assert report["test_accuracy"] == best["test_accuracy"] > 0.5  # of three classes
    assert (report["num_train"], report["num_validation"], report["num_test"]) == (204, 24, 12)
    with Image.open(tmp_path / "probe.png") as picture:
        assert picture.width > 300
    assert "best by validation" in capsys.readouterr().out


def test_a_probe_of_one_class_is_refused(script, animals_run, cats, tmp_path):
    message = refusal(script, "probe.py", animals_run, "--data", cats, "--output", tmp_path / "probe.json")
    assert "one class only (cat): there is nothing to classify. Give two or more" in message
    assert not (tmp_path / "probe.json").exists()


# --- train.py --task classification ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def classifier_run(animals_run, many_animals, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    flags = ["--task", "classification", "--model_name_or_path", animals_run, "--data", many_animals]
    run(*LAUNCH, *flags, "--output_dir", folder, "--num_train_epochs", "8", "--num_threads", "1")
    return folder


def test_a_classifier_learns_from_a_generators_weights_and_the_best_by_validation_is_kept(
    classifier_run, animals_run, many_animals
):
    results = results_of(classifier_run)
    assert (results["task"], results["stopped"]) == ("classification", "epochs")
    assert results["model_name_or_path"] == str(animals_run)
    assert results["validation_accuracy"] > 0.8
    state = json.loads((classifier_run / "trainer_state.json").read_text())
    accuracies = [entry["eval_validation_accuracy"] for entry in state["log_history"]
                  if "eval_validation_accuracy" in entry]  # fmt: skip
    assert len(accuracies) >= 2
    assert results["validation_accuracy"] == max(accuracies)
    model = AutoModelForImageClassification.from_pretrained(classifier_run)
    processor = AutoImageProcessor.from_pretrained(classifier_run)
    splits = load_splits(many_animals, seed=42)
    for name in ("validation", "test"):
        with torch.no_grad():
            outputs = model(input_ids=processor(splits[name]["image"][:])["input_ids"])
        labels = torch.tensor(splits[name]["label"][:])
        assert results[f"{name}_accuracy"] == pytest.approx(
            (outputs.logits.argmax(-1) == labels).float().mean().item()
        )
        nats = outputs.nats.double().mean().item()
        assert results[f"{name}_nats_per_image_unconditional"] == pytest.approx(nats, rel=1e-5)


def test_a_classifiers_folder_has_its_card_whose_python_runs_and_its_curve(classifier_run, many_animals):
    results = results_of(classifier_run)
    card = ModelCard.load(classifier_run / "README.md")
    names = {"images": load_splits(many_animals)["test"]["image"][:5]}
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], names)
    assert set(names["names"]) <= {"cat", "dog", "eel"}
    assert len(names["names"]) == 5
    assert card.data.to_dict()["pipeline_tag"] == "image-classification"
    assert "Terms of the data: unknown, ask whoever made it" in card.text and card.data.license == "unknown"
    assert str(many_animals.parent) not in card.text  # a local folder says nothing to others
    assert f"{100 * results['test_accuracy']:.2f}%" in card.text
    assert re.findall(r"\{\{|\}\}|\{%|%\}|None|nan", card.text) == []
    with Image.open(classifier_run / "accuracy_curve.png") as picture:
        assert picture.width > 300


def test_a_finished_classifier_that_is_resumed_is_left_as_it_is(
    script, classifier_run, animals_run, many_animals, caplog
):
    before = contents(classifier_run)
    flags = ["--task", "classification", "--model_name_or_path", animals_run, "--data", many_animals]
    flags += ["--output_dir", classifier_run, "--num_train_epochs", "8", "--resume_from_checkpoint", "true"]
    script("train.py", *flags)
    assert "holds a finished run (8 epochs" in caplog.text
    assert contents(classifier_run) == before


def test_a_classifier_is_no_generator(script, classifier_run, many_animals, tmp_path):
    message = refusal(script, "evaluate.py", classifier_run, "--data", many_animals, "--output", tmp_path / "r.json")
    assert "is a classifier" in message
    assert "LOAD REPORT" not in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_name_or_path", "nowhere"], ["there is no folder nowhere"]),
        (["--model_name_or_path", "{model}", "--hidden_size", "32"], ["--hidden_size cannot be changed"]),
        (["--model_name_or_path", "{model}", "--threshold", "0.3"], ["--threshold cannot be changed"]),
        (
            ["--model_name_or_path", "{model}", "--class_dropout_prob", "2"],
            ["class_dropout_prob", "describe no model"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_start_that_does_not_fit_is_refused(script, animals_run, many_animals, tmp_path, flags, words):
    flags = [flag.replace("{model}", str(animals_run)) for flag in flags]
    fixed = ["--task", "classification", "--data", many_animals, "--output_dir", tmp_path / "run"]
    message = refusal(script, "train.py", *fixed, *flags)
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "run").exists()


def test_a_model_goes_on_with_other_classes_and_says_which_prompts_are_new(animals, animals_run, tmp_path):
    for kind, source in (("cow", "cat"), ("dog", "dog"), ("eel", "eel"), ("fox", "eel")):
        shutil.copytree(animals / source, tmp_path / "data" / kind)
    flags = ["--model_name_or_path", animals_run, "--data", tmp_path / "data", "--skip_bad_images"]
    done = run(*LAUNCH, *flags, "--output_dir", tmp_path / "run", "--max_steps", "1", "--learning_rate", "0",
               "--class_dropout_prob", "0.03", "--num_threads", "1")  # fmt: skip
    assert "knows the classes cat, dog, eel, and the data has cow, dog, eel, fox" in done.stderr
    assert "The prompts of these are new: cow, fox." in done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    before = AutoModelForCausalLM.from_pretrained(animals_run)
    assert list(model.config.id2label.values()) == ["cow", "dog", "eel", "fox"]
    assert model.generation_config.bos_token_id == 20
    assert model.config.class_dropout_prob == 0.03
    assert f"| began with | the weights of `{animals_run.name}` |" in (tmp_path / "run" / "README.md").read_text()
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").num_labels == 4
    table, old = (x.model.embeddings.context.weight for x in (model, before))
    first = len(old) - 4
    assert torch.equal(table[:first], old[:first])
    assert torch.equal(table[first:], old[first:][[3, 1, 2, 3, 3]])  # of "any class", dog, eel, any, any


# --- examples -------------------------------------------------------------------------------------------------------


def test_foreign_images_are_found_by_their_likelihood(animals_run, many_animals, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "noise" / kind).mkdir(parents=True)
        for i in range(30):
            noise = (rng.random((12, 12)) < 0.5).astype(np.uint8) * 255
            Image.fromarray(noise).save(tmp_path / "noise" / kind / f"{i}.png")
    command = [sys.executable, EXAMPLES / "anomaly.py", animals_run, "--data", many_animals]
    done = run(*command, "--other", tmp_path / "noise", "--output", tmp_path / "anomaly.png")
    assert "-log2 p(image)  AUC 1.000" in done.stdout
    with Image.open(tmp_path / "anomaly.png") as picture:
        assert picture.width > 500


# --- explain.py -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 4, 8])
def test_the_explanation_agrees_with_the_model_and_adds_up(script, capsys, position):
    script("explain.py", "--position", position)  # compares each of its steps with the model's
    text = capsys.readouterr().out
    total = float(re.search(r"Sum: ([\d.]+) nats", text)[1])
    nats = [float(number) for number in re.findall(r"token \d: .* nats ([\d.]+)", text)]
    assert len(nats) == 9
    assert abs(sum(nats) - total) < 1e-3
    assert f"Position {position} predicts token {position}" in text


def test_a_position_outside_the_picture_is_refused(script):
    assert "--position must lie between 0 and 8, got 9" in refusal(script, "explain.py", "--position", "9")
