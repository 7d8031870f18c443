"""Public checkpoints (adapters, of which three per job are kept) and private snapshots for resuming. Never commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import Checkpoint, Job, JobTokens, Snapshot
from app.domain.jobs.states import TERMINAL

KEPT_CHECKPOINTS = 3
KEPT_SNAPSHOTS = 2


def at_step(session: Session, job_id: str, step_number: int) -> Checkpoint | None:
    return session.scalar(select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step_number == step_number))


def columns_of(job: Job, checkpoint: Checkpoint) -> dict[str, Any]:
    """The columns by which an export or an evaluation names what it is made of."""
    return {
        "project_id": job.project_id,
        "job_id": job.id,
        "checkpoint_id": checkpoint.id,
        "model": checkpoint.name,
        "base_model": job.base_model,
        "step_number": checkpoint.step_number,
        "adapter_file_ids": checkpoint.file_ids,
    }


def by_names(session: Session, names: Sequence[str]) -> dict[str, Checkpoint]:
    """{fine_tuned_model_checkpoint: checkpoint} of those that exist."""
    if not names:
        return {}
    rows = session.scalars(select(Checkpoint).where(Checkpoint.name.in_(names)))
    return {checkpoint.name: checkpoint for checkpoint in rows}


def best(session: Session, job_id: str) -> Checkpoint | None:
    """The kept checkpoint with the lowest full validation loss, the earliest of equals; it is never retired."""
    return best_of(kept(session, job_id))


def best_of(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    measured = [each for each in checkpoints if each.metrics.get("full_valid_loss") is not None]
    return min(measured, key=lambda each: (each.metrics["full_valid_loss"], each.step_number), default=None)


def kept(session: Session, job_id: str) -> list[Checkpoint]:
    """The checkpoints that are not retired, latest step first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.retired_at.is_(None))
    return list(session.scalars(query.order_by(Checkpoint.step_number.desc())))


def retire_old(session: Session, job_id: str, newest: Checkpoint, keep: int = KEPT_CHECKPOINTS) -> list[Checkpoint]:
    """Mark all but `keep` checkpoints as retired; the caller deletes their files.

    The best and the `newest` checkpoint stay, then those of the latest steps.
    """
    checkpoints = kept(session, job_id)
    best_checkpoint = best_of(checkpoints)
    protected_ids = {newest.id} if best_checkpoint is None else {newest.id, best_checkpoint.id}
    # The sort is stable, so the latest step comes first among the protected ones and among the others.
    old = sorted(checkpoints, key=lambda each: each.id not in protected_ids)[keep:]
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
    """The snapshots of a job, newest first: a later attempt resumes from the first one that verifies."""
    return list(
        session.scalars(
            select(Snapshot).where(Snapshot.job_id == job_id).order_by(Snapshot.step.desc(), Snapshot.attempt.desc())
        )
    )


def job_tokens(session: Session, job_id: str) -> JobTokens | None:
    """The stored tokens of a job's files; a repeated validation has the newest."""
    newest_first = select(JobTokens).where(JobTokens.job_id == job_id).order_by(JobTokens.created_at.desc())
    return session.scalars(newest_first.limit(1)).first()


def kept_until_end(session: Session, job_id: str) -> list[Snapshot | JobTokens]:
    """What is kept of a job for its next attempts alone."""
    return [*snapshots(session, job_id), *session.scalars(select(JobTokens).where(JobTokens.job_id == job_id))]


def leftovers(session: Session, limit: int = 100) -> list[Snapshot | JobTokens]:
    """The same of jobs that have ended."""
    ended = select(Job.id).where(Job.state.in_([state.value for state in TERMINAL]))
    return [
        *session.scalars(select(Snapshot).where(Snapshot.job_id.in_(ended)).limit(limit)),
        *session.scalars(select(JobTokens).where(JobTokens.job_id.in_(ended)).limit(limit)),
    ]


def delete_rows(session: Session, rows: Iterable[Snapshot | JobTokens]) -> None:
    for row in rows:
        session.execute(delete(type(row)).where(type(row).id == row.id))


def storage_keys(session: Session) -> set[str]:
    """The storage keys of all snapshots and tokens; there are two snapshots for each unfinished job."""
    columns = (Snapshot.storage_keys, JobTokens.storage_keys)
    return {key for column in columns for keys in session.scalars(select(column)) for key in keys.values()}
