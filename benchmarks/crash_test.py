"""Kill a training run again and again, also while it writes a checkpoint: it must end as if nothing had happened.

    python benchmarks/crash_test.py --kills 20 --output crash_test.json    # about five minutes

An uninterrupted run is the reference. The same run is then started, killed (SIGKILL) and resumed until it has been
killed `--kills` times: in turn while it writes a checkpoint, while it trains, and at any time. Each resume must go on
from the last complete checkpoint, pass over the incomplete one with a message and keep it; at the end weights,
optimizer and schedule must be equal to the reference's, bit for bit.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harness import benchmark_parser, write_results
from igpt_hf.training.checkpoints import INCOMPLETE, last_complete_checkpoint, list_checkpoints, verify_checkpoint


TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"
RUN = "--image_size 14 --num_hidden_layers 1 --num_threads 1 --disable_tqdm true --per_device_train_batch_size 8"
RUN += " --attention_dropout 0.1 --eval_strategy steps --eval_steps 10 --save_strategy steps --save_steps 10"
RUN += " --save_total_limit 2 --early_stopping_patience 100 --per_device_eval_batch_size 32"
MOMENTS = ("in a checkpoint", "while it trains", "in a checkpoint", "at any time")


def command(folder: Path, args) -> list[str]:
    """What resumes a run, or begins it where there is nothing to resume from yet."""
    has_checkpoint = last_complete_checkpoint(folder) is not None
    how = ["--resume_from_checkpoint", "true"] if has_checkpoint else ["--overwrite_output_dir", "true"]
    size = ["--max_images", str(args.images), "--num_train_epochs", str(args.epochs)]
    return [sys.executable, str(TRAIN), *RUN.split(), *size, "--output_dir", str(folder), *how]


def identities(folder: Path) -> dict[int, Path]:
    """The checkpoint folders that are there, by inode: one that is written anew counts as another."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:  # which knows inodes: the run may delete a folder at any moment
        return {entry.inode(): Path(entry.path) for entry in entries if "checkpoint-" in entry.name}


def kill_once(command: list[str], folder: Path, moment: str, rng: random.Random) -> dict | None:
    """Start the run and kill it; returns what was found afterwards, or None where it came to its end before."""
    before = identities(folder)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if moment == "at any time":
        time.sleep(rng.uniform(0, 12))  # the imports take the first seconds
    else:
        while not identities(folder).keys() - before.keys() and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.015 if moment == "in a checkpoint" else 4))
    if process.poll() is not None:
        assert process.returncode == 0, process.stderr.read()[-2000:]
        return None
    process.kill()
    log = process.communicate()[1]
    problems = {path.name: verify_checkpoint(path) for path in list_checkpoints(folder)}
    return {
        "moment": moment,
        "complete": [name for name, problem in problems.items() if problem is None],
        "incomplete": [name for name, problem in problems.items() if problem is not None],
        "passed_over": re.findall(r"(checkpoint-\d+) is passed over", log),
    }


def count_incomplete(kills: list[dict]) -> int:
    """Checkpoints that kills broke off; one that lay there before, not passed over since, is not counted again."""
    count = 0
    for before, kill in zip([{"incomplete": []}, *kills], kills, strict=False):
        count += sum(name not in before["incomplete"] or name in kill["passed_over"] for name in kill["incomplete"])
    return count


def leaves(state, path: str = "") -> dict[str, Any]:
    """The tensors and other values in nested dictionaries and lists, by their paths."""
    if not isinstance(state, dict | list | tuple):
        return {path: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {name: leaf for key, value in items for name, leaf in leaves(value, f"{path}/{key}").items()}


def differences(first: Path, second: Path) -> list[str]:
    """Names of the tensors that are not equal, bit for bit, in two checkpoints."""
    different = []
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        load = load_file if name == "model.safetensors" else partial(torch.load, weights_only=True)
        a, b = leaves(load(first / name)), leaves(load(second / name))
        assert a.keys() == b.keys(), name
        different += [
            path for path, x in a.items() if not (torch.equal(x, b[path]) if torch.is_tensor(x) else x == b[path])
        ]
    return different


def main():
    parser = benchmark_parser(__doc__, "crash_test.json")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=150, help="enough that the run outlives the kills")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, kills = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as work:
        whole, killed = Path(work) / "whole", Path(work) / "killed"
        subprocess.run(command(whole, args), check=True, capture_output=True)
        while len(kills) < args.kills:
            moment = MOMENTS[len(kills) % len(MOMENTS)]
            kill = kill_once(command(killed, args), killed, moment, rng)
            if kill is None:
                raise SystemExit(f"error: the run ended after {len(kills)} kills: take more --epochs.")
            kills.append(kill)
            print(len(kills), json.dumps(kill), flush=True)
        log = subprocess.run(command(killed, args), check=True, capture_output=True, text=True).stderr
        passed_over = sum(len(kill["passed_over"]) for kill in kills) + log.count("is passed over")
        ends = list_checkpoints(whole)[-1], list_checkpoints(killed)[-1]
        results = {
            "kills": len(kills),
            "incomplete_checkpoints": count_incomplete(kills),
            "passed_over_with_a_message": passed_over,
            "kept_for_the_user": len(list(killed.glob(f"{INCOMPLETE}*"))),
            "last_step": ends[0].name,
            "tensors_not_bit_equal": differences(*ends),
            "final_model_is_bit_equal": (whole / "model.safetensors").read_bytes()
            == (killed / "model.safetensors").read_bytes(),
            "each": kills,
        }
    write_results(results, args.output)
    print(json.dumps({key: value for key, value in results.items() if key != "each"}, indent=1))
    is_right = results["final_model_is_bit_equal"] and not results["tensors_not_bit_equal"]
    is_right &= passed_over == results["kept_for_the_user"]
    raise SystemExit(0 if is_right and ends[0].name == ends[1].name else "error: the killed run did not end alike.")


if __name__ == "__main__":
    main()
