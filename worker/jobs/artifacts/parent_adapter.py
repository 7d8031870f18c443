"""A published adapter that a job continues or that answers: fetch its files, verify each, read its spec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.jobs import checkpoints
from app.db.tables import BaseModelRow, File, Job
from app.domain.jobs.layer_patterns import expand_patterns
from app.domain.jobs.spec import LoraSpec
from app.system.artifact_directory import MANIFEST, ManifestMismatch, read_manifest, sha256_file, verify
from app.system.model_files import linear_layers
from worker.jobs.artifacts import stored_files
from worker.node.resources import Resources

START_ADAPTER = "start-adapter"


@dataclass(frozen=True)
class FetchedParentAdapter:
    directory: Path
    manifest_sha256: str
    base_manifest_sha256: str  # of the base model that it was trained with


def load(session: Session, job: Job) -> list[File] | None:
    """The rows of the parent adapter's files; None for a job without a parent.

    Deleted files are included: their objects are kept while a job needs them.
    """
    name = job.spec.get("continued_from")
    if name is None:
        return None
    checkpoint = checkpoints.by_names(session, [name])[name]  # checkpoints are retired, never deleted
    rows = [files.get_even_deleted(session, file_id) for file_id in checkpoint.file_ids]
    return [row for row in rows if row is not None]


def fetch(resources: Resources, rows: list[File], directory: Path) -> FetchedParentAdapter:
    """Fetch and verify the adapter's files.

    Raises ManifestMismatch for an incomplete or altered adapter; OSError while storage is unavailable.
    """
    destination = directory / START_ADAPTER
    for row in rows:
        try:
            sha256 = stored_files.fetch(resources.storage, row.storage_key, destination / row.filename)
        except FileNotFoundError as error:
            raise ManifestMismatch(f"{row.filename} ({row.id}) is missing in storage") from error
        if sha256 != row.sha256:
            raise ManifestMismatch(f"{row.filename} ({row.id}) differs from the file that was published")
    verify(destination)
    return read(directory)


def read(directory: Path) -> FetchedParentAdapter:
    """An adapter that was fetched into `directory`. Raises ManifestMismatch."""
    destination = directory / START_ADAPTER
    manifest = read_manifest(destination)
    base_manifest_sha256 = manifest.get("base_model", {}).get("manifest_sha256", "")
    return FetchedParentAdapter(destination, sha256_file(destination / MANIFEST), base_manifest_sha256)


def layer_lora(adapter: FetchedParentAdapter, base: BaseModelRow) -> LoraSpec:
    """The adapter's LoRA spec, with rank and alpha patterns resolved to single layers.

    Older manifests have the patterns of the request. Raises PatternError.
    """
    lora = LoraSpec.model_validate(read_manifest(adapter.directory)["lora"])
    if lora.rank_pattern or lora.alpha_pattern:
        return expand_patterns(lora, layers_of(base))
    return lora


def layers_of(base: BaseModelRow) -> dict[str, tuple[int, int]]:
    """The shapes [out, in] of the linear layers by name, from the files where the registration did not store them."""
    return base.catalog_entry.layers or linear_layers(Path(base.directory))
