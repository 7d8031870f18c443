"""The usage of a project: stored bytes, queued and running jobs, GPU-seconds of this month. Never commits."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.tables import File, Job
from app.domain.jobs.states import JobState

QUEUED_STATES = (JobState.VALIDATING, JobState.QUEUED)
# The month is a calendar month in UTC. `held` are the seconds that running attempts will still take: the estimate of
# the last metrics, else the plan.
GPU_SECONDS = """
SELECT
  coalesce(sum(attempt.gpus * extract(epoch FROM
    coalesce(attempt.ended_at, clock_timestamp()) - greatest(attempt.started_at, month.began))), 0)::float AS used,
  coalesce(sum(attempt.gpus * CASE WHEN attempt.ended_at IS NULL THEN coalesce(
    (job.progress ->> 'eta_seconds')::float,
    greatest(0, plan.predicted_seconds - extract(epoch FROM clock_timestamp() - attempt.started_at)),
    0) END), 0)::float AS held
FROM (SELECT date_trunc('month', clock_timestamp(), 'UTC') AS began) AS month
JOIN attempts AS attempt ON attempt.kind = 'train' AND attempt.project_id = :project_id
  AND (attempt.ended_at IS NULL OR attempt.ended_at > month.began)
JOIN jobs AS job ON job.id = attempt.job_id
LEFT JOIN measurements AS plan ON plan.job_id = attempt.job_id AND plan.attempt = attempt.attempt
"""


@dataclass(frozen=True)
class Usage:
    stored_bytes: int
    queued_jobs: int
    running_jobs: int
    gpu_seconds_this_month: float
    held_gpu_seconds: float


def project_usage(session: Session, project_id: str) -> Usage:
    used, held = gpu_seconds(session, project_id)
    running = _count_jobs(session, project_id, JobState.RUNNING)
    return Usage(stored_bytes(session, project_id), queued_jobs(session, project_id), running, used, held)


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
    row = session.execute(text(GPU_SECONDS), {"project_id": project_id}).one()
    return row.used, row.held


def _count_jobs(session: Session, project_id: str, *states: JobState) -> int:
    query = select(func.count()).select_from(Job).where(Job.project_id == project_id, Job.state.in_(states))
    return session.scalar(query) or 0
