"""The adapter that a job goes on from: its files out of storage, each the one that was published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.jobs import checkpoints
from app.db.tables import File, Job
from app.system.artifact_directory import MANIFEST, ManifestMismatch, sha256_file, verify
from worker.jobs import artifacts
from worker.node.resources import Resources

START_ADAPTER = "start-adapter"


@dataclass(frozen=True)
class StartAdapter:
    directory: Path
    manifest_sha256: str
    base_manifest_sha256: str  # of the base model it was trained on


def load(session: Session, job: Job) -> list[File] | None:
    """The rows of its files, also of deleted ones: the bytes stay while a job needs them. None without an ancestor."""
    name = job.spec.get("continued_from")
    if name is None:
        return None
    checkpoint = checkpoints.by_names(session, [name])[name]  # checkpoints are retired, never deleted
    rows = [files.get_even_deleted(session, file_id) for file_id in checkpoint.file_ids]
    return [row for row in rows if row is not None]


def fetch(resources: Resources, rows: list[File], directory: Path) -> StartAdapter:
    """Raises ManifestMismatch for an adapter that is not whole; OSError while storage is away, which is no verdict."""
    destination = directory / START_ADAPTER
    for row in rows:
        try:
            sha256 = artifacts.fetch(resources.storage, row.storage_key, destination / row.filename)
        except FileNotFoundError as error:
            raise ManifestMismatch(f"{row.filename} ({row.id}) is gone from storage") from error
        if sha256 != row.sha256:
            raise ManifestMismatch(f"{row.filename} ({row.id}) is not the file that was published")
    manifest = verify(destination)
    base_manifest_sha256 = manifest.get("base_model", {}).get("manifest_sha256", "")
    return StartAdapter(destination, sha256_file(destination / MANIFEST), base_manifest_sha256)
