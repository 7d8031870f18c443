"""The queue and the workers: an admin key sees everything, other keys their own jobs, and counts of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select, text
from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.fast_reads import job_reads
from app.db.scheduling import device_losses, fair_queue, workers
from app.db.scheduling.fair_queue import SECONDS_LEFT
from app.db.tables import Evaluation, Job, QueuePlace, Worker
from app.db.tables.base import core_table
from app.domain.error_text.json_text import unquoted
from app.domain.jobs.states import UNFINISHED_WORK, Desired, JobState
from app.errors import NotFound

SHOWN_STATES = {"validating": JobState.VALIDATING, "waiting": JobState.QUEUED, "running": JobState.RUNNING}
RUNNING = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now)
SELECT job.id, job.project_id, job.base_model, job.priority, job.is_urgent, job.lease_owner, job.phase,
  job.yield_requested_at IS NOT NULL AS gives_way, attempt.started_at AS attempt_started_at,
  moment.now + {SECONDS_LEFT} * interval '1 second' AS expected_finish_at
FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
WHERE NOT attempt.is_counted AND attempt.kind = 'train' AND attempt.ended_at IS NULL AND job.state = 'running'
  AND (CAST(:project_id AS text) IS NULL OR job.project_id = :project_id)
ORDER BY attempt.started_at, job.seq
"""

WAITING = (
    job_reads.JOB.with_only_columns(*core_table(Job).c, *job_reads.PLACE)
    .where(Job.state == JobState.QUEUED, Job.desired == Desired.RUN)
    .order_by(QueuePlace.position.nulls_last(), Job.seq)
)


def view_workers(session: Session, project_id: str, is_admin: bool) -> list[Worker]:
    """The workers with a heartbeat within the last minute, with what they hold."""
    holders = [_lease_owners(session, table) for table in (Job, Evaluation)]
    names = {row.name for row in models.list_base(session, None if is_admin else project_id)}
    rows = workers.alive(session)
    for row in rows:
        row.models = [name for name in row.about.get("models") or () if name in names]
        row.is_busy = any(row.id in held for held in holders)
        visible = [held.get(row.id, ("", "")) for held in holders]
        row.job_id, row.evaluation_id = (
            held_id if held_id and (is_admin or owner_id == project_id) else None for held_id, owner_id in visible
        )
    return rows


def resume_worker(session: Session, project_id: str, worker_id: str) -> Worker:
    """Put a living worker back into service, named by its id, its name, or the part of the name that restarts keep.

    Raises NotFound.
    """
    for row in view_workers(session, project_id, is_admin=True):
        if worker_id in (public_worker_id(row.id), row.id, device_losses.slot_of(row.id)):
            device_losses.resume(session, row.id)
            row.out_of_service_at = None
            return row
    raise NotFound(f"No such Worker object: {unquoted(worker_id)}", "worker_id")


def view_queue(session: Session, project_id: str, is_admin: bool, limit: int, half_life_seconds: float) -> Any:
    """The queue as QueueBody shows it, with at most `limit` waiting jobs and evaluations."""
    visible_project_id = None if is_admin else project_id
    counts = _counts(session, project_id)
    gpu_workers = [row for row in view_workers(session, project_id, is_admin) if row.queue == "gpu"]
    waiting = _waiting(session, visible_project_id, limit + 1)
    shares = fair_queue.project_shares(session, half_life_seconds)
    shown_shares = [each for each in shares if is_admin or each.project_id == project_id]
    return {
        "workers": {"alive": len(gpu_workers), "busy": sum(row.is_busy for row in gpu_workers)},
        "own": {name: counts.get((state, True), 0) for name, state in SHOWN_STATES.items()},
        "others": {name: counts.get((state, False), 0) for name, state in SHOWN_STATES.items()},
        "running": _running(session, visible_project_id),
        "waiting": waiting[:limit],
        "has_more": len(waiting) > limit,
        "evaluations": _unfinished_evaluations(session, visible_project_id, limit),
        "projects": sorted(shown_shares, key=lambda each: (each.share, each.project_id)),
    }


def public_worker_id(name: str) -> str:
    """A public id that does not reveal the host's name, which the worker's name contains."""
    return f"worker_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _counts(session: Session, project_id: str) -> dict[tuple[str, bool], int]:
    """{(state, whether they belong to the project): number of unfinished jobs}."""
    is_own = (Job.project_id == project_id).label("is_own")
    query = (
        select(Job.state, is_own, func.count())
        .where(Job.state.in_([*SHOWN_STATES.values()]))
        .group_by(Job.state, is_own)
    )
    return {(state, own): count for state, own, count in session.execute(query)}


def _running(session: Session, project_id: str | None) -> list[Row[Any]]:
    """The running jobs of a project, or of all, in order of their start."""
    return list(session.execute(text(RUNNING), {"project_id": project_id}))


def _waiting(session: Session, project_id: str | None, limit: int) -> Sequence[Any]:
    """The waiting jobs of a project, or of all, with their forecast: in its order, then those created since, which are
    last until the next forecast."""
    query = WAITING if project_id is None else WAITING.where(Job.project_id == project_id)
    return session.execute(query.limit(limit)).all()


def _lease_owners(session: Session, table: type[Job | Evaluation]) -> dict[str, tuple[str, str]]:
    """{worker id: (id of the job or the evaluation it holds, id of its project)}."""
    query = select(table.lease_owner, table.id, table.project_id).where(table.lease_owner.is_not(None))
    return {owner: (row_id, project_id) for owner, row_id, project_id in session.execute(query) if owner}


def _unfinished_evaluations(session: Session, project_id: str | None, limit: int) -> list[Evaluation]:
    """The evaluations of a project, or of all: running ones, then queued ones in the order of their claims."""
    query = select(Evaluation).where(Evaluation.state.in_(UNFINISHED_WORK))
    if project_id is not None:
        query = query.where(Evaluation.project_id == project_id)
    return list(session.scalars(query.order_by(Evaluation.lease_owner.is_(None), Evaluation.seq).limit(limit)))
