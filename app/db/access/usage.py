"""The usage of a project: stored bytes, queued and running jobs, GPU-seconds of this month. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.tables import File, Job
from app.domain.jobs.states import JobState

QUEUED_STATES = (JobState.VALIDATING, JobState.QUEUED)
# The month is a calendar month in UTC. A slot of a shared GPU counts as its share of it. `held` are the seconds that
# running attempts will still take: the estimate of the last metrics, else the plan.
GPU_SECONDS = """
SELECT
  attempt.project_id,
  coalesce(sum(attempt.gpus * attempt.gpu_share * extract(epoch FROM
    coalesce(attempt.ended_at, clock_timestamp()) - greatest(attempt.started_at, month.began))), 0)::float AS used,
  coalesce(sum(attempt.gpus * attempt.gpu_share * CASE WHEN attempt.ended_at IS NULL THEN coalesce(
    (job.progress ->> 'eta_seconds')::float,
    greatest(0, plan.predicted_seconds - extract(epoch FROM clock_timestamp() - attempt.started_at)),
    0) END), 0)::float AS held
FROM (SELECT date_trunc('month', clock_timestamp(), 'UTC') AS began) AS month
JOIN attempts AS attempt ON attempt.kind = 'train' AND attempt.project_id = ANY(CAST(:project_ids AS text[]))
  AND (attempt.ended_at IS NULL OR attempt.ended_at > month.began)
JOIN jobs AS job ON job.id = attempt.job_id
LEFT JOIN measurements AS plan ON plan.job_id = attempt.job_id AND plan.attempt = attempt.attempt
GROUP BY attempt.project_id
"""


@dataclass(frozen=True)
class Usage:
    stored_bytes: int
    queued_jobs: int
    running_jobs: int
    gpu_seconds_this_month: float
    held_gpu_seconds: float


def project_usage(session: Session, project_id: str) -> Usage:
    return usage_by_project(session, [project_id])[project_id]


def usage_by_project(session: Session, project_ids: Sequence[str]) -> dict[str, Usage]:
    """The usage of several projects, in three queries."""
    stored_query = (
        select(File.project_id, func.sum(File.bytes))
        .where(File.project_id.in_(project_ids), File.purged_at.is_(None))
        .group_by(File.project_id)
    )
    stored = {project_id: int(size_bytes) for project_id, size_bytes in session.execute(stored_query)}
    counted_states = (*QUEUED_STATES, JobState.RUNNING)
    job_query = (
        select(Job.project_id, Job.state, func.count())
        .where(Job.project_id.in_(project_ids), Job.state.in_(counted_states))
        .group_by(Job.project_id, Job.state)
    )
    jobs = {(project_id, state): count for project_id, state, count in session.execute(job_query)}
    seconds = _gpu_seconds(session, project_ids)
    return {
        each: Usage(
            stored.get(each, 0),
            sum(jobs.get((each, state), 0) for state in QUEUED_STATES),
            jobs.get((each, JobState.RUNNING), 0),
            *seconds.get(each, (0.0, 0.0)),
        )
        for each in project_ids
    }


def stored_bytes(session: Session, project_id: str) -> int:
    """Bytes of all files whose content still exists, including deleted files that a job needs."""
    query = select(func.coalesce(func.sum(File.bytes), 0)).where(
        File.project_id == project_id, File.purged_at.is_(None)
    )
    return int(session.scalar(query) or 0)


def queued_jobs(session: Session, project_id: str) -> int:
    """The number of jobs that wait for a worker or for the validation of their files."""
    return _count_jobs(session, project_id, *QUEUED_STATES)


def gpu_seconds(session: Session, project_id: str) -> tuple[float, float]:
    """(GPU-seconds used this month, GPU-seconds reserved for the rest of running attempts)."""
    return _gpu_seconds(session, [project_id]).get(project_id, (0.0, 0.0))


def _gpu_seconds(session: Session, project_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    rows = session.execute(text(GPU_SECONDS), {"project_ids": list(project_ids)})
    return {row.project_id: (row.used, row.held) for row in rows}


def _count_jobs(session: Session, project_id: str, *states: JobState) -> int:
    query = select(func.count()).select_from(Job).where(Job.project_id == project_id, Job.state.in_(states))
    return session.scalar(query) or 0
