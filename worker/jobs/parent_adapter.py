"""The parent adapter, with which a job continues: fetch its files from storage and verify each."""

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
            sha256 = artifacts.fetch(resources.storage, row.storage_key, destination / row.filename)
        except FileNotFoundError as error:
            raise ManifestMismatch(f"{row.filename} ({row.id}) is missing in storage") from error
        if sha256 != row.sha256:
            raise ManifestMismatch(f"{row.filename} ({row.id}) differs from the file that was published")
    manifest = verify(destination)
    base_manifest_sha256 = manifest.get("base_model", {}).get("manifest_sha256", "")
    return FetchedParentAdapter(destination, sha256_file(destination / MANIFEST), base_manifest_sha256)
