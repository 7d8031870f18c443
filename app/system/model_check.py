"""Runs the trainer's check of a model directory in a child process, on a machine that has torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from app.domain.base_models.catalog import RefusedModel
from app.domain.base_models.trainer_report import TrainerReport

REQUIRED_MODULES = ("torch", "transformers", "peft", "bitsandbytes", "worker")
KILLED = (-9, 137)  # by the kernel, for memory


def can_check() -> bool:
    """Whether this machine has what the trainer needs."""
    return all(importlib.util.find_spec(name) is not None for name in REQUIRED_MODULES)


def dequantize(directory: Path) -> Path:
    """Convert an MXFP4 or FP8 checkpoint to 16 bits, beside it, once; return the new directory. Raises RefusedModel."""
    destination = directory.with_name(f"{directory.name}-bf16")
    if destination.exists():
        return destination
    if not can_check():
        raise RefusedModel(f"{directory} is quantized already. Register it on a host with torch, which converts it")
    command = [sys.executable, "-m", "worker.trainer.model.dequantize_checkpoint", str(directory), str(destination)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed, for memory perhaps"])[-1]
        raise RefusedModel(f"{directory} cannot be converted to 16 bits: {last}")
    return destination


def check_model(directory: Path) -> TrainerReport | None:
    """The report of a model that can be trained; None where this machine has no torch, or too little memory.

    Raises RefusedModel with every reason against the model.
    """
    if not can_check():
        return None
    command = [sys.executable, "-m", "worker.trainer.model.check_model", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in KILLED:
        return None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RefusedModel(f"{directory} cannot be a base model: the trainer cannot load it ({last})")
    report = TrainerReport.model_validate_json(done.stdout)
    if report.problems:
        raise RefusedModel(f"{directory} cannot be a base model: " + "; ".join(report.problems))
    return report
