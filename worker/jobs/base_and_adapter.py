"""The base model and the adapter that a program reads, of a job that continues it, an export, an evaluation or a trial
answer: their rows, and their files, verified.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from app.db import files
from app.db.base_models import models
from app.db.tables import BaseModelRow, Evaluation, Export, File
from app.domain.base_models.catalog import ALTERED_REASON, StatSignature, unusable_model_message
from app.domain.jobs.layer_patterns import PatternError, expand_patterns
from app.domain.jobs.spec import BaseSpec, LoraSpec
from app.storage import Storage
from app.system.artifact_directory import MANIFEST, ManifestMismatch, read_manifest, sha256_file, verify
from app.system.model_files import hash_directory, linear_layers, stat_signature
from worker.jobs.sanitize import clean_text
from worker.jobs.stored_files import fetch

DIRECTORY = "start-adapter"
MODEL_UNAVAILABLE, ADAPTER_DELETED = "model_unavailable", "adapter_deleted"


class AttemptFailed(Exception):
    """The attempt failed; `is_final`: another attempt would fail in the same way. `code` is of the row's error codes,
    which share `server_error`."""

    def __init__(self, code: str, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = clean_text(message)
        self.is_final = is_final


@dataclass(frozen=True)
class FetchedAdapter:
    """The verified files of an adapter."""

    directory: Path
    manifest_sha256: str


def load_base(session: Session, project_id: str, name: str) -> BaseModelRow:
    """Raises AttemptFailed if an operator has removed the base model."""
    base = models.get_base(session, project_id, name)
    if base is None:
        raise unusable_base(name, "it is no longer registered", is_final=True)
    return base


def load_base_and_adapter(session: Session, row: Export | Evaluation) -> tuple[BaseModelRow, list[File]]:
    """The base model and the adapter's files. Raises AttemptFailed."""
    base = load_base(session, row.project_id, row.base_model)
    return base, load_files(session, row.adapter_file_ids)


def load_files(session: Session, file_ids: Iterable[str]) -> list[File]:
    """Files of an adapter, also deleted ones: their objects are kept while work needs them."""
    found = (files.get_even_deleted(session, file_id) for file_id in file_ids)
    return [file for file in found if file is not None]


def verify_base(base: BaseModelRow) -> BaseSpec:
    """The base model for a program; its files are byte for byte those that were registered. Raises AttemptFailed."""
    directory = Path(base.directory).absolute()
    try:
        signature = stat_signature(directory)  # before the hash: after a change during it the trainer hashes again
        sha256 = _hash_unchanged(directory, signature)
    except OSError as error:
        raise unusable_base(base.name, f"its files cannot be read on this worker ({error.strerror})") from error
    if sha256 != base.manifest_sha256:
        raise unusable_base(base.name, ALTERED_REASON)
    return BaseSpec(name=base.name, directory=directory, manifest_sha256=sha256, signature=signature)


def unusable_base(name: str, why: str, is_final: bool = False) -> AttemptFailed:
    return AttemptFailed(MODEL_UNAVAILABLE, unusable_model_message(name, why), is_final)


def fetch_adapter(storage: Storage, rows: Iterable[File], base: BaseModelRow, directory: Path) -> FetchedAdapter:
    """Fetch an adapter into `directory` and verify it. Raises AttemptFailed if it is incomplete, was altered, or was
    trained with other files of the base model; OSError while storage is unavailable."""
    fetch_adapter_files(storage, rows, directory)
    return read_adapter(base, directory)


def fetch_adapter_files(storage: Storage, rows: Iterable[File], directory: Path) -> None:
    """Fetch the files of an adapter, for `read_adapter`. Raises AttemptFailed, OSError."""
    try:
        for row in rows:
            _fetch_file(storage, row, directory / DIRECTORY / row.filename)
        verify(directory / DIRECTORY)
    except ManifestMismatch as error:
        raise _altered_adapter(error) from error


def read_adapter(base: BaseModelRow, directory: Path) -> FetchedAdapter:
    """An adapter that was fetched into `directory`. Raises AttemptFailed."""
    destination = directory / DIRECTORY
    try:
        manifest = read_manifest(destination)
    except ManifestMismatch as error:
        raise _altered_adapter(error) from error
    if manifest.get("base_model", {}).get("manifest_sha256") != base.manifest_sha256:
        text = f"The adapter was trained with other base model files than those registered as {base.name!r}"
        raise AttemptFailed(MODEL_UNAVAILABLE, text, is_final=True)
    return FetchedAdapter(destination, sha256_file(destination / MANIFEST))


def layer_lora(adapter: FetchedAdapter, base: BaseModelRow) -> LoraSpec:
    """The adapter's LoRA spec, with rank and alpha patterns resolved to single layers.

    Older manifests have the patterns of the request. Raises AttemptFailed.
    """
    lora = LoraSpec.model_validate(read_manifest(adapter.directory)["lora"])
    if not (lora.rank_pattern or lora.alpha_pattern):
        return lora
    try:
        return expand_patterns(lora, layers_of(base))
    except PatternError as error:
        raise AttemptFailed("server_error", f"The adapter cannot be used: {error}.", is_final=True) from error


def layers_of(base: BaseModelRow) -> dict[str, tuple[int, int]]:
    """The shapes [out, in] of the linear layers by name, from the files where the registration did not store them."""
    return base.catalog_entry.layers or linear_layers(Path(base.directory))


def _altered_adapter(error: ManifestMismatch) -> AttemptFailed:
    return AttemptFailed(ADAPTER_DELETED, f"The adapter is incomplete or altered: {error}", is_final=True)


def _fetch_file(storage: Storage, row: File, destination: Path) -> None:
    """Raises ManifestMismatch, OSError."""
    try:
        sha256 = fetch(storage, row.storage_key, destination)
    except FileNotFoundError as error:
        raise ManifestMismatch(f"{row.filename} ({row.id}) is missing in storage") from error
    if sha256 != row.sha256:
        raise ManifestMismatch(f"{row.filename} ({row.id}) differs from the file that was published")


@lru_cache(maxsize=64)
def _hash_unchanged(directory: Path, signature: StatSignature) -> str:
    del signature  # part of the cache key only
    return hash_directory(directory)[1]
