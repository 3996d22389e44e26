"""Processes, devices, threads and precision of a run, and warnings if they are not what was requested."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .errors import IGPTError


Result = TypeVar("Result")


def precision(args) -> str:
    """fp32, bf16 or fp16, whether a flag or the configuration of `accelerate launch` says so."""
    return "fp32" if args.mixed_precision == "no" else args.mixed_precision


def describe_launch(args, num_threads: int) -> str:
    """Describe what a run really uses: processes, machines, device, threads and precision.

    Args:
        args: `TrainingArguments`.
        num_threads: CPU threads of each process.
    """
    machines = args.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    where = f" on {machines} machines" if machines > 1 else ""
    processes = f"{args.world_size} process(es){where} on {device}"
    return f"{processes}, {num_threads} CPU thread(s) each, precision {precision(args)}"


def launch_warnings(args, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Warn if a run has less than was requested, as far as the launcher's variables show.

    Args:
        args: `TrainingArguments`.
        environ: `accelerate launch` sets MASTER_ADDR only for more than one process, and WORLD_SIZE and LOCAL_RANK
            only where it really starts them.
    """
    warnings = []
    if "MASTER_ADDR" in environ and args.world_size == 1 and int(environ.get("WORLD_SIZE", 0)) != 1:
        warnings.append(
            "more than one process was requested, but this is the only one: on the CPU `accelerate launch --cpu "
            "--num_processes 2` starts one. Use --config_file configs/accelerate/cpu-2.yaml and --use_cpu true."
        )
    if "LOCAL_RANK" in environ and args.device.type == "cpu" and not args.use_cpu:
        warnings.append("GPU processes were requested, but there is no GPU. If that is meant: --use_cpu true.")
    if args.device.type == "cuda" and args.world_size == 1 and args.n_gpu > 1:
        warnings.append(
            f"{args.n_gpu} GPUs share one process, which is slow. Use --config_file configs/accelerate/gpu-8.yaml "
            f"--num_processes {args.n_gpu}, or choose one with CUDA_VISIBLE_DEVICES=0."
        )
    return warnings


def end_with_parent():
    """Get SIGTERM when the process that started this one ends, however it ends (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def end_with_launcher():
    """Get SIGTERM when `accelerate launch` ends: it passes no signal on, and would leave the training behind."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        end_with_parent()


def on_first_process(function: Callable[[], Result]) -> Result:
    """Call a function in the first process alone; all processes get its result, or raise its IGPTError."""
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            outcome = [function()]
        except IGPTError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], IGPTError):
        raise outcome[0]
    return outcome[0]


def destroy_process_group():
    """End the process group, and gloo's threads with it: the last that a script does.

    Call it where no variable holds the Trainer any more. Its cycles, and with them the group, would otherwise live
    until the interpreter ends; a thread of gloo that then lets go of a tensor aborts the process.
    """
    gc.collect()
    PartialState().destroy_process_group()


def use_all_cores(num_threads: int | None = None) -> int:
    """Share the CPU cores among the processes of this machine; returns the threads that each one uses.

    `accelerate launch` sets OMP_NUM_THREADS=1 unless told otherwise, which leaves a CPU run on one core.
    """
    if num_threads is None:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        can_ask = hasattr(os, "sched_getaffinity")  # Linux: the cores that this process may use
        num_cores = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count()
        num_threads = max(1, num_cores // local_processes)
    torch.set_num_threads(num_threads)
    return num_threads
