"""Snapshots: what a later attempt goes on from. Stored as they come, two kept, verified before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import null
from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.jobs import checkpoints, claims
from app.db.tables import Job, Snapshot
from app.domain.jobs.events import SnapshotSaved
from app.domain.jobs.snapshots import resume_message
from app.log import get_logger
from app.system.artifact_directory import MANIFEST, ManifestMismatch, sha256_file, verify
from app.system.snapshot_directories import newest_valid
from worker.jobs import artifacts
from worker.jobs.lease import DATABASE_AWAY, LeaseKeeper
from worker.node.resources import Resources

log = get_logger(__name__)


def save(resources: Resources, job: Job, keeper: LeaseKeeper, directory: Path, record: SnapshotSaved) -> None:
    """Put a trainer's snapshot into storage, then its row; the oldest goes. Raises ManifestMismatch, OSError."""
    if keeper.transact(lambda session: _is_known(session, job, record.step)):
        return
    copy = directory / "outbox" / f"snapshot-{record.step:06d}"
    artifacts.take_copy(artifacts.inside(directory, record.directory), copy)
    _put(resources, job, keeper, copy, record)
    copy.rmdir()


def move(resources: Resources, job: Job, keeper: LeaseKeeper, directory: Path, record: SnapshotSaved) -> None:
    """The same after the trainer has ended, without a copy: within one file system it takes no space."""
    if keeper.transact(lambda session: _is_known(session, job, record.step)):
        return
    source = artifacts.inside(directory, record.directory)
    artifacts.check_in_place(source)
    _put(resources, job, keeper, source, record)


def _put(resources: Resources, job: Job, keeper: LeaseKeeper, source: Path, record: SnapshotSaved) -> None:
    if sha256_file(source / MANIFEST) != record.manifest_sha256:
        raise ManifestMismatch(f"{record.directory}: the manifest is not the one that was announced")
    prefix = f"jobs/{job.id}/attempts/{job.attempt}/snapshots/step-{record.step:06d}"
    with artifacts.taking_back() as undo:
        keys = {file.filename: file.key for file in artifacts.put_directory(resources.storage, source, prefix)}
        undo.callback(artifacts.discard, resources.storage, list(keys.values()))
        keeper.transact(
            lambda session: _add(session, keeper, record, keys), lambda session: _is_known(session, job, record.step)
        )
    drop(resources, keeper.transact(lambda session: checkpoints.old_snapshots(session, job.id)) or [])


def restore(
    resources: Resources, job: Job, keeper: LeaseKeeper, rows: Sequence[Snapshot], directory: Path
) -> Path | None:
    """The newest snapshot that verifies, fetched; None to start from zero. An event says which, never in silence."""
    found, problems = newest_valid(rows, lambda row: (row, _fetch(resources, row, directory / "resume")))
    row, destination = found or (None, None)
    if row is not None or job.train_attempts > 1:
        level, text = resume_message(row.step if row else None, problems)
        keeper.say(text, level=level, data={"step": row.step if row else 0})
    drop(resources, rows[: len(problems)])
    return destination


def drop(resources: Resources, rows: Sequence[Snapshot]) -> None:
    """Bytes first, rows after: what a crash leaves between is found again."""
    gone = [row.id for row in rows if artifacts.discard(resources.storage, row.storage_keys.values())]
    if not gone:
        return
    try:
        with transaction(resources.sessions) as session:
            checkpoints.delete_snapshots(session, gone)
    except DATABASE_AWAY as error:
        log.warning("snapshot rows not deleted", error=str(error))


def _is_known(session: Session, job: Job, step: int) -> bool:
    return any(row.step == step and row.attempt == job.attempt for row in checkpoints.snapshots(session, job.id))


def _add(session: Session, keeper: LeaseKeeper, record: SnapshotSaved, keys: dict[str, str]) -> None:
    """A snapshot further on than any before it is progress: crashes and full disks before it count no more.

    That of step 0 is none: every job has it.
    """
    steps = [row.step for row in checkpoints.snapshots(session, keeper.lease.job_id)]
    is_progress = record.step > max(steps, default=0)
    anew = {"crash_streak": 0, "storage_full_since": null()} if is_progress else {"crash_streak": Job.crash_streak}
    job = claims.update_held_job(session, keeper.lease, **anew)
    checkpoints.add_snapshot(session, job, record.step, record.manifest_sha256, keys)


def _fetch(resources: Resources, row: Snapshot, parent: Path) -> Path:
    """Raises ManifestMismatch for a snapshot that is not whole; OSError while storage is away, which is no verdict."""
    destination = parent / f"step-{row.step:06d}-of-attempt-{row.attempt}"
    try:
        _fetch_files(resources, row, destination)
    except ManifestMismatch as error:
        raise ManifestMismatch(f"step {row.step} of attempt {row.attempt}: {error}") from error
    return destination


def _fetch_files(resources: Resources, row: Snapshot, destination: Path) -> None:
    try:
        for name, key in row.storage_keys.items():
            artifacts.fetch(resources.storage, key, destination / name)
    except FileNotFoundError as error:
        raise ManifestMismatch(f"{error.filename} is missing") from error
    if sha256_file(destination / MANIFEST) != row.manifest_sha256:
        raise ManifestMismatch("its manifest was altered")
    verify(destination)
