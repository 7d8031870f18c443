"""Two things called checkpoint. Public: adapters, the last three of a job kept. Private: snapshots, for resume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import Checkpoint, Job, Snapshot
from app.domain.states import TERMINAL

KEPT_CHECKPOINTS = 3
KEPT_SNAPSHOTS = 2


def add(
    session: Session,
    job: Job,
    step_number: int,
    name: str,
    metrics: dict[str, Any],
    manifest: dict[str, Any],
    file_ids: list[str],
    archive_file_id: str,
) -> Checkpoint:
    checkpoint = Checkpoint(
        id=new_id("ftckpt", "_"),
        project_id=job.project_id,
        job_id=job.id,
        attempt=job.attempt,
        step_number=step_number,
        name=name,
        metrics=metrics,
        manifest=manifest,
        file_ids=file_ids,
        archive_file_id=archive_file_id,
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def replace(
    session: Session,
    checkpoint: Checkpoint,
    job: Job,
    name: str,
    metrics: dict[str, Any],
    manifest: dict[str, Any],
    file_ids: list[str],
    archive_file_id: str,
) -> Checkpoint:
    """The same step, published again: it was a pause at the very end. The caller deletes the old files."""
    checkpoint.attempt, checkpoint.name, checkpoint.retired_at = job.attempt, name, None
    checkpoint.metrics, checkpoint.manifest = metrics, manifest
    checkpoint.file_ids, checkpoint.archive_file_id = file_ids, archive_file_id
    session.flush()
    return checkpoint


def at_step(session: Session, job_id: str, step_number: int) -> Checkpoint | None:
    return session.scalar(select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step_number == step_number))


def get(session: Session, job_id: str, checkpoint_id: str) -> Checkpoint | None:
    return session.scalar(select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.id == checkpoint_id))


def by_names(session: Session, names: Sequence[str]) -> dict[str, Checkpoint]:
    """{fine_tuned_model_checkpoint: checkpoint} of those that exist."""
    if not names:
        return {}
    return {found.name: found for found in session.scalars(select(Checkpoint).where(Checkpoint.name.in_(names)))}


def page(session: Session, job_id: str, limit: int, after: Checkpoint | None = None) -> list[Checkpoint]:
    """Latest step first, the kept ones, at most `limit`."""
    query = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.retired_at.is_(None))
        .order_by(Checkpoint.step_number.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(Checkpoint.step_number < after.step_number)
    return list(session.scalars(query))


def retire_old(session: Session, job_id: str, keep: int = KEPT_CHECKPOINTS) -> list[Checkpoint]:
    """Mark all but the latest `keep` as retired; the caller deletes their files."""
    old = page(session, job_id, limit=1_000)[keep:]
    for checkpoint in old:
        checkpoint.retired_at = func.clock_timestamp()
    session.flush()
    return old


def add_snapshot(session: Session, job: Job, step: int, manifest_sha256: str, storage_keys: dict[str, str]) -> Snapshot:
    snapshot = Snapshot(
        id=new_id("snap", "_"),
        project_id=job.project_id,
        job_id=job.id,
        attempt=job.attempt,
        step=step,
        manifest_sha256=manifest_sha256,
        storage_keys=storage_keys,
    )
    session.add(snapshot)
    session.flush()
    return snapshot


def snapshots(session: Session, job_id: str) -> list[Snapshot]:
    """Newest first: a later attempt starts from the first of them that verifies."""
    return list(
        session.scalars(
            select(Snapshot).where(Snapshot.job_id == job_id).order_by(Snapshot.step.desc(), Snapshot.attempt.desc())
        )
    )


def old_snapshots(session: Session, job_id: str, keep: int = KEPT_SNAPSHOTS) -> list[Snapshot]:
    """All but the newest `keep`. Their bytes go first and their rows after: a crash between leaves nothing orphaned."""
    return snapshots(session, job_id)[keep:]


def left_over_snapshots(session: Session, limit: int = 100) -> list[Snapshot]:
    """Snapshots of jobs that have ended: nobody will resume from them."""
    ended = select(Job.id).where(Job.state.in_([state.value for state in TERMINAL]))
    return list(session.scalars(select(Snapshot).where(Snapshot.job_id.in_(ended)).limit(limit)))


def forget_snapshots(session: Session, snapshot_ids: Iterable[str]) -> None:
    session.execute(delete(Snapshot).where(Snapshot.id.in_(list(snapshot_ids))))
