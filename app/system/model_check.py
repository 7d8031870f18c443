"""Runs the trainer's check of a model directory, and its conversion to 16 bits, on a machine that has torch.

Both run in a child process, which ends with this one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from app.domain.base_models.catalog import RefusedModel
from app.domain.base_models.trainer_report import TrainerReport
from app.domain.jobs.states import ExitCode
from app.system import model_files
from app.system.parent_death import PARENT_PID_VARIABLE

REQUIRED_MODULES = ("torch", "transformers", "peft", "bitsandbytes", "worker")
TOO_LITTLE_MEMORY = (-9, ExitCode.KILLED, ExitCode.OUT_OF_MEMORY)  # the first two are by the kernel
CHECK_SECONDS = 2.0


def can_check() -> bool:
    """Whether this machine has what the trainer needs."""
    return all(importlib.util.find_spec(name) is not None for name in REQUIRED_MODULES)


def copy_in_16_bits(directory: Path) -> Path:
    """The place of the 16-bit copy of an MXFP4 or FP8 checkpoint: beside it."""
    return directory.with_name(f"{directory.name}-bf16")


def dequantize(directory: Path, destination: Path, check: Callable[[], None]) -> None:
    """Convert an MXFP4 or FP8 checkpoint to 16 bits, once; `check` may interrupt it. Raises RefusedModel."""
    if destination.exists():
        if not model_files.is_dequantized_from(destination, directory):
            raise RefusedModel(
                f"{destination} exists, but it was not converted from the files that {directory} has now. Rename or "
                f"remove it to convert {directory} again, or register {destination} itself"
            )
        return
    if not can_check():
        raise RefusedModel(f"{directory} is quantized already. Register it on a host with torch, which converts it")
    needed_bytes, free_bytes = model_files.dequantized_bytes(directory), shutil.disk_usage(directory.parent).free
    if needed_bytes > free_bytes:
        raise RefusedModel(
            f"{directory} is converted to 16 bits, which needs {needed_bytes / 1e9:.2f} GB in {directory.parent}, but "
            f"{free_bytes / 1e9:.2f} GB are free. Free some space, or move {directory} to a larger disk"
        )
    done = _run("dequantize_checkpoint", directory, destination, check=check)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed, for memory perhaps"])[-1]
        raise RefusedModel(f"{directory} cannot be converted to 16 bits: {last}")


def check_model(directory: Path, check: Callable[[], None]) -> TrainerReport | None:
    """The report of a model that can be trained; None where this machine has no torch, or too little memory.

    `check` may interrupt it. Raises RefusedModel with every reason against the model.
    """
    if not can_check():
        return None
    done = _run("check_model", directory, check=check)
    if done.returncode in TOO_LITTLE_MEMORY:
        return None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RefusedModel(f"{directory} cannot be a base model: the trainer cannot load it ({last})")
    report = TrainerReport.model_validate_json(done.stdout)
    if report.problems:
        raise RefusedModel(f"{directory} cannot be a base model: " + "; ".join(report.problems))
    return report


def _run(program: str, *paths: Path, check: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """Run a program of worker.trainer.model. It ends with this process, and when `check` raises."""
    command = [sys.executable, "-m", f"worker.trainer.model.{program}", *map(str, paths)]
    environment = os.environ | {PARENT_PID_VARIABLE: str(os.getpid())}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while True:
                try:
                    output, errors = process.communicate(timeout=CHECK_SECONDS)
                except subprocess.TimeoutExpired:
                    check()
                else:
                    return subprocess.CompletedProcess(command, process.returncode, output, errors)
        except BaseException:
            process.kill()
            raise
