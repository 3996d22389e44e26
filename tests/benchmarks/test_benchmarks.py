"""The benchmarks run, at a size that says nothing about speed."""

import argparse
import importlib
import json
import math
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ablations
import baselines
import crash_test
import presets
import speed
import streaming
from helpers.paths import BENCHMARKS
from helpers.scripts import run_python
from igpt_hf import IGPTConfig, IGPTError, load_splits


BENCHMARK_NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
TINY = ["--max_images", "60", "--num_hidden_layers", "1", "--num_threads", "1", "--disable_tqdm", "true"]


def test_a_folder_of_another_command_is_refused(tmp_path):
    for _ in range(2):
        ablations.check_command(["scripts/train.py", "--data", "a b.cdb"], tmp_path / "run")
    with pytest.raises(SystemExit, match="has the run of another command"):
        ablations.check_command(["scripts/train.py", "--data", "c.cdb"], tmp_path / "run")


@pytest.mark.slow
def test_ablations_make_a_table_and_do_not_run_twice(tmp_path):
    variants = tmp_path / "variants.yaml"
    variants.write_text("default:\nsmall radius: {neighborhood_radius: 1}\ngated: {model: swiglu}\nnever: {}\n")
    command = [BENCHMARKS / "ablations.py", "--variants", variants, "--output", tmp_path / "runs", "--epochs", 1]
    command += ["--only", "default", "small radius", "gated", "--flags", *TINY]
    first = run_python(*command)
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table in first.stdout
    assert table.count("\n") == 5
    results = tmp_path / "runs" / "runs.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["default", "small radius", "gated"]
    assert rows[1]["parameters"] < rows[0]["parameters"]
    assert [row["command"].split()[1] for row in rows] == [*["scripts/train.py"] * 2, "benchmarks/variants.py"]
    assert rows[2]["validation"] != rows[0]["validation"]
    shutil.rmtree(tmp_path / "runs" / "default-1-seed42")  # the results file knows of it
    assert table in run_python(*command).stdout
    assert not (tmp_path / "runs" / "default-1-seed42").exists()


def test_the_table_of_ablations_compares_with_the_default_at_the_same_seeds():
    shared = {"parameters": 1, "epochs": 2.0, "minutes": 1.0, "train": 50.0}
    nats = [("default", 1, 55.0), ("default", 2, 57.0), ("better", 2, 56.0)]
    records = [{"variant": name, "seed": seed, "validation": value, **shared} for name, seed, value in nats]
    default, better = ablations.summarize(records)
    assert (default["validation"], default["spread"], default["seeds"]) == ("56.00", "2.00", "1, 2")
    assert (better["validation"], better["against default"]) == ("56.00", "-1.00")


@pytest.mark.slow
def test_a_baseline_is_chosen_on_validation_and_trained_for_the_whole_time(tmp_path):
    folder = tmp_path / "runs"
    command = [BENCHMARKS / "baselines.py", "--only", "gated PixelCNN", "--minutes", "0.02", "--output", folder]
    command += ["--num_images", "60", "--num_threads", "1", "--flags", "--max_images", "60"]
    run_python(*command)
    (row,) = json.loads((folder / "baselines.json").read_text())
    assert len(row["tried"]) == 3
    best = min(row["tried"], key=lambda candidate: candidate["validation"])
    assert (row["batch"], row["learning rate"]) == (best["batch"], best["learning_rate"])
    assert row["validation"] < 784 * math.log(2)
    assert row["parameters"] == 34_241
    assert f"--batch_size {best['batch']}" in row["command"]


def test_imagegpt_and_our_model_get_commands_of_one_budget():
    args = argparse.Namespace(data="digits.cdb", seed=1, num_threads=2, flags=[])
    stock = " ".join(baselines.command(args, baselines.IMAGEGPT, 4, 8e-3, 60, 1.4))
    ours = " ".join(baselines.command(args, baselines.OURS, 32, 1e-2, 60, 70))
    shared = "--max_minutes 60 --disable_tqdm true --num_train_epochs {} --data digits.cdb --seed 1 --learning_rate {}"
    assert "--preset stock-xxs --per_device_train_batch_size 4 " + shared.format(1.4, 0.008) in stock
    assert "--preset xxs --per_device_train_batch_size 32 " + shared.format(70, 0.01) in ours


@pytest.mark.slow
def test_an_unknown_variant_is_answered_with_those_there_are(tmp_path):
    done = run_python(BENCHMARKS / "ablations.py", "--only", "nothing", "--output", tmp_path, check=False)
    assert done.returncode == 1
    assert "has no variant 'nothing'; it has: default, radius 0" in done.stderr


@pytest.mark.slow
def test_the_parts_are_compared(tmp_path):
    run_python(BENCHMARKS / "parts.py", "--quick", "--output", tmp_path / "parts.json")
    rows = json.loads((tmp_path / "parts.json").read_text())
    assert rows.pop("threads") >= 1
    assert len(rows) == 6
    assert all(abs(row["ratio"] * row["ours_ms"] - row["library_ms"]) < 1e-6 for row in rows.values())


@pytest.mark.parametrize("name", speed.MODELS)
def test_the_memory_of_training_is_measured_for_both_models(name):
    code = f"import speed; print(speed.memory_of_training({name!r}, 1))"
    megabytes = float(run_python("-c", code, cwd=BENCHMARKS).stdout)  # a process of its own, which has no peak before
    assert 1 < megabytes < 10_000


def test_a_speed_is_compared_at_one_batch_size_or_each_at_its_best():
    table = {"stock": {1: 2.0, 4: 5.0}, "ours": {1: 10.0, 64: 40.0}}
    assert [speed.ratio(table, 1), speed.ratio(table), speed.ratio(table, 64)] == [5.0, 8.0, None]


def test_the_crash_test_names_each_tensor_that_is_not_equal(tmp_path):
    for name, value in (("whole", 1.0), ("killed", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"same": torch.zeros(2), "weight": torch.tensor([value])}, tmp_path / name / "model.safetensors")
        optimizer = {"state": {0: {"step": 3, "moment": torch.tensor([value])}}, "groups": [{"lr": value, "no": None}]}
        torch.save(optimizer, tmp_path / name / "optimizer.pt")
        torch.save({"last_epoch": 1}, tmp_path / name / "scheduler.pt")
    assert crash_test.differences(tmp_path / "whole", tmp_path / "whole") == []
    different = crash_test.differences(tmp_path / "whole", tmp_path / "killed")
    assert different == ["/weight", "/state/0/moment", "/groups/0/lr"]


def test_the_table_of_presets_is_made_of_finished_runs_in_order_of_their_size(tmp_path):
    for preset, size in (("xs", 400), ("xxs", 30)):
        IGPTConfig.from_preset(preset).save_pretrained(tmp_path / preset)
        results = {"num_parameters": size, "epochs": 2.0, "train_runtime": 90.0, "train_images_per_second": 7.0}
        results["model_name_or_path"] = None
        (tmp_path / preset / "all_results.json").write_text(json.dumps(results))
        report = {name: float(size) for name in presets.OF_REPORT}
        (tmp_path / preset / "report.json").write_text(json.dumps(report))
    plot = tmp_path / "presets.png"
    runs = ["--mnist", tmp_path / "xs", tmp_path / "xxs"]
    run_python(BENCHMARKS / "presets.py", *runs, "--seconds", 0, "--output", plot)
    rows = json.loads(plot.with_suffix(".json").read_text())["MNIST"]
    assert [(row["preset"], row["nats_per_image"]) for row in rows] == [("xxs", 30.0), ("xs", 400.0)]
    for row in rows:
        assert row["minutes"] * 60 * row["images_per_second"] == pytest.approx(90 * 7)
    results["model_name_or_path"] = "runs/first"
    (tmp_path / "xxs" / "all_results.json").write_text(json.dumps(results))
    with pytest.raises(IGPTError, match="xxs is no whole training"):
        presets.read_run(tmp_path / "xxs", 0)
    assert Image.open(plot).width > 1000


@pytest.mark.parametrize("name", BENCHMARK_NAMES)
def test_every_benchmark_imports_what_there_is(name):
    importlib.import_module(name)


def test_the_shards_of_streaming_are_read_as_white_on_black_digits(tmp_path):
    streaming.write_shards(tmp_path / "shards", num_images=60, num_shards=2)
    splits = load_splits(str(tmp_path / "shards"))
    assert sum(len(split) for split in splits.values()) == 60
    image = splits["train"][0]["image"]
    assert image.size == (28, 28) and image.info["foreground"] == "white"
