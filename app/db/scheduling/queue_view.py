"""The queue for display: counts, running jobs, waiting jobs in order, and the owners of leases. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, case, func, select, text
from sqlalchemy.orm import Session

from app.db.scheduling.fair_queue import SECONDS_LEFT
from app.db.tables import Evaluation, Job, QueuePlace
from app.domain.evaluations.states import UNFINISHED
from app.domain.jobs.states import Desired, JobState

SHOWN_STATES = (JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING)
RUNNING = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now)
SELECT job.id, job.project_id, job.base_model, job.priority, job.is_urgent, job.worker_labels, job.lease_owner,
  job.phase, job.yield_requested_at IS NOT NULL AS gives_way, attempt.started_at,
  moment.now + {SECONDS_LEFT} * interval '1 second' AS expected_finish_at
FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
WHERE NOT attempt.is_counted AND attempt.kind = 'train' AND attempt.ended_at IS NULL AND job.state = 'running'
  AND (CAST(:project_id AS text) IS NULL OR job.project_id = :project_id)
ORDER BY attempt.started_at, job.seq
"""


def counts(session: Session, project_id: str) -> dict[tuple[str, bool], int]:
    """{(state, whether they belong to the project): number of unfinished jobs}."""
    is_own = case((Job.project_id == project_id, True), else_=False).label("is_own")
    query = select(Job.state, is_own, func.count()).where(Job.state.in_([*SHOWN_STATES])).group_by(Job.state, is_own)
    return {(state, own): count for state, own, count in session.execute(query)}


def running(session: Session, project_id: str | None) -> list[Row[Any]]:
    """The running jobs of a project, or of all, in order of their start."""
    return list(session.execute(text(RUNNING), {"project_id": project_id}))


def waiting(session: Session, project_id: str | None, limit: int) -> Sequence[Any]:
    """(job, forecast) of the waiting jobs of a project, or of all: in the order of the forecast, then those created
    since, which are last until the next forecast."""
    after_last = select(func.coalesce(func.max(QueuePlace.position), 0) + 1).scalar_subquery()
    position = func.coalesce(QueuePlace.position, after_last).label("position")
    query = (
        select(Job, position, QueuePlace.expected_start_at, QueuePlace.waiting_for)
        .outerjoin(QueuePlace, QueuePlace.job_id == Job.id)
        .where(Job.state == JobState.QUEUED, Job.desired == Desired.RUN)
        .order_by(QueuePlace.position.nulls_last(), Job.seq)
        .limit(limit)
    )
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    return session.execute(query).all()


def lease_owners(session: Session, table: type[Job | Evaluation]) -> dict[str, tuple[str, str]]:
    """{worker id: (id of the job or the evaluation it holds, id of its project)}."""
    query = select(table.lease_owner, table.id, table.project_id).where(table.lease_owner.is_not(None))
    return {owner: (row_id, project_id) for owner, row_id, project_id in session.execute(query) if owner}


def unfinished_evaluations(session: Session, project_id: str | None, limit: int) -> list[Evaluation]:
    """The evaluations of a project, or of all: running ones, then queued ones in the order of their claims."""
    query = select(Evaluation).where(Evaluation.state.in_([state.value for state in UNFINISHED]))
    if project_id is not None:
        query = query.where(Evaluation.project_id == project_id)
    return list(session.scalars(query.order_by(Evaluation.lease_owner.is_(None), Evaluation.seq).limit(limit)))
