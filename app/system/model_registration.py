"""The steps of a registration, on the host that has the directory: convert, check, hash.

The trainer's check of a model directory, and its conversion to 16 bits, run on a machine that has torch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.base_models.catalog import CatalogEntry, RefusedModel, TrainerReport
from app.domain.jobs.states import ExitCode
from app.system import model_files
from app.system.host import PARENT_PID_VARIABLE

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


@dataclass(frozen=True)
class RegistrationOptions:
    learning_rate: float | None = None
    license: str | None = None
    source: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class CheckedModel:
    """`directory` has the 16-bit weights, which are a copy if the given ones are MXFP4 or FP8."""

    directory: Path
    entry: CatalogEntry
    files: dict[str, Any]
    manifest_sha256: str


def check_and_hash(
    directory: Path,
    options: RegistrationOptions,
    on_note: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> CheckedModel:
    """Describe a model directory. Raises RefusedModel, OSError.

    `on_note` gets a sentence before each long step. `check` is called every two seconds of the steps that run in a
    child process, and ends them by raising.
    """
    if not model_files.is_dequantized_first(directory):
        return _check_and_hash(directory, options, on_note, check)
    model_files.check_files(directory)  # before a conversion that takes hours and a disk
    copy = copy_in_16_bits(directory)
    is_new = not copy.exists()
    on_note(f"Converting {directory} to 16 bits, once …")
    dequantize(directory, copy, check)
    on_note(f"The base model is {copy}. Copy it to the same path on every worker.")
    try:
        return _check_and_hash(copy, options, on_note, check)
    except RefusedModel:
        if is_new:
            shutil.rmtree(copy, ignore_errors=True)
        raise


def _check_and_hash(
    directory: Path, options: RegistrationOptions, on_note: Callable[[str], None], check: Callable[[], None]
) -> CheckedModel:
    entry = model_files.read_catalog_entry(directory, options.learning_rate, options.license)
    on_note(f"Checking that {directory} can be trained …")
    report = check_model(directory, check)
    if report is None:
        on_note(
            "Not checked: this machine has no torch or too little memory. The first job checks the model and counts "
            "its memory; plans before it are rough."
        )
    else:
        entry = model_files.with_report(entry, report)
        for note in report.notes:
            on_note(note)
    entry = entry.model_copy(update={"source": options.source, "revision": options.revision})
    on_note(f"Hashing {entry.size_bytes / 1e9:.2f} GB in {directory} …")
    files, manifest_sha256 = model_files.hash_directory(directory)
    return CheckedModel(directory, entry, files, manifest_sha256)
