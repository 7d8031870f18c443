"""Two things called checkpoint. Public: adapters, the last three of a job kept. Private: snapshots, for resume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import Checkpoint, Job, Snapshot
from app.domain.jobs.states import TERMINAL

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
    """The kept ones, at most `limit`: the job's result first, as clients expect it there, then latest step first.

    The result need not be the latest: it may be the best of them.
    """
    result = select(Job.fine_tuned_model).where(Job.id == job_id).scalar_subquery()
    is_result = func.coalesce(Checkpoint.name == result, False)
    query = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.retired_at.is_(None))
        .order_by(is_result.desc(), Checkpoint.step_number.desc())
        .limit(limit)
    )
    if after is not None:
        is_after_result = after.name == session.scalar(select(result))
        query = query.where(is_result.is_(False))
        if not is_after_result:
            query = query.where(Checkpoint.step_number < after.step_number)
    return list(session.scalars(query))


def best(session: Session, job_id: str) -> Checkpoint | None:
    """The kept one with the lowest full validation loss, the earliest of equals; it is never retired."""
    return best_of(kept(session, job_id))


def best_of(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    measured = [each for each in checkpoints if each.metrics.get("full_valid_loss") is not None]
    return min(measured, key=lambda each: (each.metrics["full_valid_loss"], each.step_number), default=None)


def kept(session: Session, job_id: str) -> list[Checkpoint]:
    """Latest step first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.retired_at.is_(None))
    return list(session.scalars(query.order_by(Checkpoint.step_number.desc())))


def retire_old(session: Session, job_id: str, newest: Checkpoint, keep: int = KEPT_CHECKPOINTS) -> list[Checkpoint]:
    """Mark all but `keep` as retired; the caller deletes their files.

    The best one and the `newest` to be published stay, then those of the latest steps.
    """
    everything = kept(session, job_id)
    spared = [newest.id] + [each.id for each in (best_of(everything),) if each is not None]
    old = sorted(everything, key=lambda each: each.id not in spared)[keep:]  # stable: latest step first in each part
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


def leftover_snapshots(session: Session, limit: int = 100) -> list[Snapshot]:
    """Snapshots of jobs that have ended: nobody will resume from them."""
    ended = select(Job.id).where(Job.state.in_([state.value for state in TERMINAL]))
    return list(session.scalars(select(Snapshot).where(Snapshot.job_id.in_(ended)).limit(limit)))


def delete_snapshots(session: Session, snapshot_ids: Iterable[str]) -> None:
    session.execute(delete(Snapshot).where(Snapshot.id.in_(list(snapshot_ids))))


def snapshot_storage_keys(session: Session) -> set[str]:
    """Every object that a snapshot names; there are two snapshots for each unfinished job."""
    return {key for keys in session.scalars(select(Snapshot.storage_keys)) for key in keys.values()}
