"""Snapshots, from which a later attempt resumes: store the trainer's, keep two, verify one before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import null
from sqlalchemy.orm import Session

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.jobs import checkpoints, claims
from app.db.tables import Job, Snapshot
from app.domain.jobs.events import SnapshotSaved
from app.domain.jobs.snapshots import resume_message
from app.log import get_logger
from app.system.artifact_directory import MANIFEST, ManifestMismatch, sha256_file, verify
from app.system.snapshot_directories import newest_valid
from worker.jobs.artifacts import stored_files
from worker.jobs.lease import LeaseKeeper
from worker.node.resources import Resources

log = get_logger(__name__)


def save(resources: Resources, job: Job, keeper: LeaseKeeper, directory: Path, record: SnapshotSaved) -> None:
    """Store a copy of a trainer's snapshot, add its row, and delete old ones. Raises ManifestMismatch, OSError."""
    if keeper.transact(lambda session: _is_stored(session, job, record.step)):
        return
    copy = directory / "outbox" / f"snapshot-{record.step:06d}"
    stored_files.copy_verified(stored_files.resolve_inside(directory, record.directory), copy)
    _put(resources, job, keeper, copy, record)
    copy.rmdir()


def move(resources: Resources, job: Job, keeper: LeaseKeeper, directory: Path, record: SnapshotSaved) -> None:
    """Store a snapshot without a copy, after the trainer has exited: within one file system a move takes no space.

    Raises ManifestMismatch, OSError.
    """
    if keeper.transact(lambda session: _is_stored(session, job, record.step)):
        return
    source = stored_files.resolve_inside(directory, record.directory)
    stored_files.verify_in_place(source)
    _put(resources, job, keeper, source, record)


def _put(resources: Resources, job: Job, keeper: LeaseKeeper, source: Path, record: SnapshotSaved) -> None:
    if sha256_file(source / MANIFEST) != record.manifest_sha256:
        raise ManifestMismatch(f"{record.directory}: the manifest differs from the one in the trainer's record")
    prefix = stored_files.unique(f"jobs/{job.id}/attempts/{job.attempt}/snapshots/step-{record.step:06d}")
    with stored_files.delete_unless_committed() as undo:
        stored = stored_files.put_directory(resources, keeper, source, prefix)
        keys = {file.filename: file.key for file in stored}
        undo.callback(stored_files.discard, resources.storage, list(keys.values()))
        keeper.transact(
            lambda session: _add(session, keeper, record, keys), lambda session: _is_stored(session, job, record.step)
        )
    drop(resources, keeper.transact(lambda session: checkpoints.old_snapshots(session, job.id)) or [])


def restore(
    resources: Resources, job: Job, keeper: LeaseKeeper, rows: Sequence[Snapshot], directory: Path
) -> Path | None:
    """Fetch the newest snapshot that verifies; None if the job starts from zero. An event states which."""
    valid, problems = newest_valid(rows, lambda row: (row, _fetch(resources, row, directory / "resume")))
    row, destination = valid or (None, None)
    if row is not None or job.train_attempts > 1:
        level, text = resume_message(row.step if row else None, problems)
        keeper.append_event(text, level=level, data={"step": row.step if row else 0})
    drop(resources, rows[: len(problems)])
    return destination


def drop(resources: Resources, rows: Sequence[Snapshot]) -> None:
    """Delete snapshots: objects first, rows after, so that a crash leaves rows, which are found again."""
    deleted_ids = [row.id for row in rows if stored_files.discard(resources.storage, row.storage_keys.values())]
    if not deleted_ids:
        return
    try:
        with transaction(resources.sessions) as session:
            checkpoints.delete_snapshots(session, deleted_ids)
    except DATABASE_UNAVAILABLE as error:
        log.warning("snapshot rows not deleted", error=first_line(error))


def _is_stored(session: Session, job: Job, step: int) -> bool:
    return any(row.step == step and row.attempt == job.attempt for row in checkpoints.snapshots(session, job.id))


def _add(session: Session, keeper: LeaseKeeper, record: SnapshotSaved, keys: dict[str, str]) -> None:
    """Add the row of a snapshot. A later step than that of any snapshot before is progress, which resets crash streak
    and storage wait. The snapshot of step 0 is no progress: every job has it."""
    steps = [row.step for row in checkpoints.snapshots(session, keeper.lease.job_id)]
    is_progress = record.step > max(steps, default=0)
    columns = {"crash_streak": 0, "storage_full_since": null()} if is_progress else {"crash_streak": Job.crash_streak}
    job = claims.update_held_job(session, keeper.lease, **columns)
    checkpoints.add_snapshot(session, job, record.step, record.manifest_sha256, keys)


def _fetch(resources: Resources, row: Snapshot, parent: Path) -> Path:
    """Fetch and verify one snapshot. Raises ManifestMismatch for an incomplete or altered one; OSError while storage is
    unavailable."""
    destination = parent / f"step-{row.step:06d}-of-attempt-{row.attempt}"
    try:
        for name, key in row.storage_keys.items():
            stored_files.fetch(resources.storage, key, destination / name)
        if sha256_file(destination / MANIFEST) != row.manifest_sha256:
            raise ManifestMismatch("its manifest was altered")
        verify(destination)
    except FileNotFoundError as error:
        raise ManifestMismatch(f"step {row.step} of attempt {row.attempt}: {error.filename} is missing") from error
    except ManifestMismatch as error:
        raise ManifestMismatch(f"step {row.step} of attempt {row.attempt}: {error}") from error
    return destination
