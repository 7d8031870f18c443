"""The steps of a registration, on the host that has the directory: convert, check, hash."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.base_models.catalog import CatalogEntry, RefusedModel
from app.system import model_check, model_files


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
    copy = model_check.copy_in_16_bits(directory)
    is_new = not copy.exists()
    on_note(f"Converting {directory} to 16 bits, once …")
    model_check.dequantize(directory, copy, check)
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
    report = model_check.check_model(directory, check)
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
