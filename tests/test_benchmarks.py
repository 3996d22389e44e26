"""The benchmarks run, at a size that says nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--max_images", "60", "--num_hidden_layers", "1", "--num_threads", "1", "--disable_tqdm", "true"]


def run(*command, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=400)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def test_ablations_make_a_table_and_do_not_run_twice(tmp_path):
    variants = tmp_path / "variants.yaml"
    variants.write_text("default:\nsmall radius: {neighborhood_radius: 1}\nnever: {hidden_size: 24}\n")
    command = [BENCHMARKS / "ablations.py", "--variants", variants, "--output", tmp_path / "runs", "--epochs", 1]
    command += ["--only", "default", "small radius", "--flags", *TINY]
    first = run(*command)
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table in first.stdout
    assert table.count("\n") == 4
    rows = [json.loads(line) for line in (tmp_path / "runs" / "runs.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["default", "small radius"]
    assert rows[1]["parameters"] < rows[0]["parameters"]
    assert all("train.py --data synthetic" in row["command"] for row in rows)
    weights = tmp_path / "runs" / "default-seed42" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert table in run(*command).stdout
    assert weights.stat().st_mtime_ns == before


def test_an_unknown_variant_is_answered_with_those_there_are(tmp_path):
    done = run(BENCHMARKS / "ablations.py", "--only", "nothing", "--output", tmp_path, check=False)
    assert done.returncode == 1
    assert "has no variant 'nothing'; it has: default, radius 0" in done.stderr


def test_the_parts_are_compared(tmp_path):
    run(BENCHMARKS / "parts.py", "--quick", "--output", tmp_path / "parts.json")
    rows = json.loads((tmp_path / "parts.json").read_text())
    assert rows.pop("threads") >= 1
    assert len(rows) == 6
    assert all(abs(row["ratio"] * row["ours_ms"] - row["library_ms"]) < 1e-6 for row in rows.values())
