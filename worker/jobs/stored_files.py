"""Copy files between storage and a work directory, verified against their manifests.

Snapshots, from which a later attempt resumes: store the trainer's, keep two, verify one before it is used.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import null
from sqlalchemy.orm import Session

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.jobs import checkpoints, leases
from app.db.tables import File, Job, JobTokens, Snapshot
from app.domain.jobs.events import SnapshotSaved, resume_message
from app.log import get_logger
from app.storage import Storage
from app.system.artifact_directory import (
    MANIFEST,
    ManifestMismatch,
    newest_valid,
    read_manifest,
    sha256_file,
    verify,
)
from app.system.files import copy_and_hash
from worker.jobs.lease import JobAttempt, LeaseKeeper, LeaseUncertain
from worker.node.resources import Resources

ARCHIVE = "adapter.tar"
PURPOSE = "fine-tune-results"

log = get_logger(__name__)


@dataclass(frozen=True)
class StoredFile:
    filename: str
    key: str
    size_bytes: int
    sha256: str

    def row(self, project_id: str, job_id: str) -> File:
        """The row that makes the file visible, as a result of the job."""
        return File(
            project_id=project_id,
            job_id=job_id,
            purpose=PURPOSE,
            filename=self.filename,
            bytes=self.size_bytes,
            sha256=self.sha256,
            storage_key=self.key,
        )


def fetch(storage: Storage, key: str, destination: Path) -> str:
    """Copy an object to a new file and return its SHA-256. Raises FileNotFoundError, OSError."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with storage.open(key) as source, destination.open("xb") as target:
        return copy_and_hash(source, target).sha256


def copy_verified(directory: Path, destination: Path) -> dict[str, Any]:
    """Copy a directory of files and its manifest, verify each file during the copy, and return the manifest.

    Raises ManifestMismatch for a directory that differs from its manifest or has subdirectories.
    """
    shutil.rmtree(destination, ignore_errors=True)  # a copy that failed
    destination.mkdir(parents=True)
    _copy_file(directory / MANIFEST, destination / MANIFEST)
    manifest = read_manifest(destination)
    for name, entry in manifest["files"].items():
        if Path(name).name != name:
            raise ManifestMismatch(f"{directory.name}: the manifest names {name!r}; only plain file names are allowed")
        sha256 = _copy_file(directory / name, destination / name)
        if not isinstance(entry, dict) or sha256 != entry.get("sha256"):
            raise ManifestMismatch(f"{directory.name}: {name} was altered (its SHA-256 differs)")
    return manifest


def verify_in_place(directory: Path) -> None:
    """Verify a directory that no program writes any more.

    Raises ManifestMismatch for a directory that differs from its manifest or has subdirectories.
    """
    try:
        verify(directory)
    except (KeyError, TypeError) as error:
        raise ManifestMismatch(f"{directory.name}: the manifest has an entry without size and SHA-256") from error
    if any(not item.is_file(follow_symlinks=False) for item in os.scandir(directory)):
        raise ManifestMismatch(f"{directory.name}: it has a subdirectory or a link; only plain files are allowed")


def unique(prefix: str) -> str:
    """A prefix for new keys: the deletion of earlier objects of the same name, still under way, cannot reach them."""
    return f"{prefix}/{secrets.token_hex(4)}"


def put_directory(attempt: LeaseKeeper[Any], directory: Path, prefix: str, keys: list[str]) -> list[StoredFile]:
    """Move every file of `directory` into storage below `prefix`, as `put_file` does."""
    return [put_file(attempt, path, f"{prefix}/{path.name}", keys) for path in sorted(directory.iterdir())]


def put_file(attempt: LeaseKeeper[Any], path: Path, key: str, keys: list[str]) -> StoredFile:
    """Move a file into storage, and add its key to `keys`, which `deleted_unless_committed` yields.

    An event says if the storage is unavailable for some time. Raises FencedError.
    """
    sha256 = sha256_file(path)
    resources = attempt.resources
    keys.append(key)
    stored = resources.storage_outage.retry(
        lambda: resources.storage.put(key, path),
        notify=lambda message: attempt.append_event(message, level="warn"),
        check=attempt.check,
    )
    return StoredFile(path.name, key, stored.size_bytes, sha256)


@contextmanager
def deleted_unless_committed(storage: Storage) -> Iterator[list[str]]:
    """A list of keys, whose objects are deleted if the rows that name them were certainly not committed."""
    keys: list[str] = []
    try:
        yield keys
    except LeaseUncertain:
        raise
    except BaseException:
        discard(storage, keys)
        raise


def discard(storage: Storage, keys: Iterable[str]) -> bool:
    """Delete objects that are no longer needed. Returns False if one could not be deleted; raises nothing."""
    all_deleted = True
    for key in keys:
        try:
            storage.delete(key)
        except OSError as error:
            log.warning("object not deleted", key=key, error=str(error))
            all_deleted = False
    return all_deleted


def resolve_inside(directory: Path, relative: str) -> Path:
    """Resolve a path that a trainer named. Raises ManifestMismatch if it is outside `directory`."""
    path = (directory / relative).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ManifestMismatch(f"{relative!r} is outside the work directory")
    return path


def _copy_file(source: Path, destination: Path) -> str:
    """Copy a regular file, and return its SHA-256. Symbolic links are refused: they could point at files of others.

    Raises ManifestMismatch.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise ManifestMismatch(f"{source.parent.name}: {source.name} is missing") from error
    with os.fdopen(descriptor, "rb") as opened, destination.open("xb") as target:
        return copy_and_hash(opened, target).sha256


def save_snapshot(attempt: JobAttempt, record: SnapshotSaved, *, is_trainer_running: bool = True) -> None:
    """Store a trainer's snapshot, add its row, and delete old ones. Raises ManifestMismatch, OSError.

    After the trainer's exit it is moved without a copy: within one file system that takes no space.
    """
    if attempt.transact(lambda session: _is_stored(session, attempt.row, record.step)):
        return
    source = resolve_inside(attempt.directory, record.directory)
    if not is_trainer_running:
        verify_in_place(source)
        _put_snapshot(attempt, source, record)
        return
    copy = attempt.directory / "outbox" / f"snapshot-{record.step:06d}"
    copy_verified(source, copy)
    _put_snapshot(attempt, copy, record)
    copy.rmdir()


def _put_snapshot(attempt: JobAttempt, source: Path, record: SnapshotSaved) -> None:
    resources, job = attempt.resources, attempt.row
    if sha256_file(source / MANIFEST) != record.manifest_sha256:
        raise ManifestMismatch(f"{record.directory}: the manifest differs from the one in the trainer's record")
    prefix = unique(f"jobs/{job.id}/attempts/{job.attempt}/snapshots/step-{record.step:06d}")
    with deleted_unless_committed(resources.storage) as keys:
        stored = {file.filename: file.key for file in put_directory(attempt, source, prefix, keys)}
        attempt.transact(
            lambda session: _add_snapshot(session, attempt, record, stored),
            lambda session: _is_stored(session, job, record.step),
        )
    newest_first = attempt.transact(lambda session: checkpoints.snapshots(session, job.id))
    drop(resources, newest_first[checkpoints.KEPT_SNAPSHOTS :])


def restore_snapshot(attempt: JobAttempt, rows: Sequence[Snapshot]) -> Path | None:
    """Fetch the newest snapshot that verifies; None if the job starts from zero. An event states which."""
    resources, parent = attempt.resources, attempt.directory / "resume"
    valid, problems = newest_valid(rows, lambda row: (row, _fetch_snapshot(resources, row, parent)))
    row, destination = valid or (None, None)
    if row is not None or attempt.row.train_attempts > 1:
        level, text = resume_message(row.step if row else None, problems)
        attempt.append_event(text, level=level, data={"step": row.step if row else 0})
    drop(resources, rows[: len(problems)])
    return destination


def drop(resources: Resources, rows: Sequence[Snapshot | JobTokens]) -> None:
    """Delete snapshots and tokens: objects first, rows after, so that a crash leaves rows, which are found again."""
    deleted = [row for row in rows if discard(resources.storage, row.storage_keys.values())]
    if not deleted:
        return
    try:
        with transaction(resources.sessions) as session:
            checkpoints.delete_rows(session, deleted)
    except DATABASE_UNAVAILABLE as error:
        log.warning("rows of snapshots and tokens not deleted", error=first_line(error))


def _is_stored(session: Session, job: Job, step: int) -> bool:
    return any(row.step == step and row.attempt == job.attempt for row in checkpoints.snapshots(session, job.id))


def _add_snapshot(session: Session, attempt: JobAttempt, record: SnapshotSaved, keys: dict[str, str]) -> None:
    """Add the row of a snapshot. A later step than that of any snapshot before is progress, which resets crash streak
    and storage wait. The snapshot of step 0 is no progress: every job has it."""
    steps = [row.step for row in checkpoints.snapshots(session, attempt.lease.row_id)]
    is_progress = record.step > max(steps, default=0)
    columns = {"crash_streak": 0, "storage_full_since": null()} if is_progress else {"crash_streak": Job.crash_streak}
    job = leases.update_held(session, Job, attempt.lease, **columns)
    checkpoints.add_snapshot(session, job, record.step, record.manifest_sha256, keys)


def _fetch_snapshot(resources: Resources, row: Snapshot, parent: Path) -> Path:
    """Fetch and verify one snapshot. Raises ManifestMismatch for an incomplete or altered one; OSError while storage is
    unavailable."""
    destination = parent / f"step-{row.step:06d}-of-attempt-{row.attempt}"
    try:
        for name, key in row.storage_keys.items():
            fetch(resources.storage, key, destination / name)
        if sha256_file(destination / MANIFEST) != row.manifest_sha256:
            raise ManifestMismatch("its manifest was altered")
        verify(destination)
    except FileNotFoundError as error:
        raise ManifestMismatch(f"step {row.step} of attempt {row.attempt}: {error.filename} is missing") from error
    except ManifestMismatch as error:
        raise ManifestMismatch(f"step {row.step} of attempt {row.attempt}: {error}") from error
    return destination
