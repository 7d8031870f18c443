"""The usage of a project: stored bytes, queued and running jobs, GPU-seconds of this month. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.tables import File, Job
from app.db.tables.base import sql_string_list
from app.domain.jobs.states import JobState

QUEUED_STATES = (JobState.VALIDATING, JobState.QUEUED)
# The month is a calendar month in UTC. A slot of a shared GPU counts as its share of it. `held` are the seconds that
# running attempts will still take: the estimate of the last metrics, else the plan. Attempts are those of trainings
# and of evaluations.
GPU_SECONDS = """
WITH month AS (SELECT date_trunc('month', clock_timestamp(), 'UTC') AS began),
attempt AS (
  SELECT training.project_id, training.gpus * training.gpu_share AS gpus, training.started_at, training.ended_at,
    coalesce((job.progress ->> 'eta_seconds')::float,
    plan.predicted_seconds - extract(epoch FROM clock_timestamp() - training.started_at)) AS seconds_left
  FROM month JOIN attempts AS training ON training.kind = 'train'
    AND training.project_id = ANY(CAST(:project_ids AS text[]))
    AND (training.ended_at IS NULL OR training.ended_at > month.began)
  JOIN jobs AS job ON job.id = training.job_id
  LEFT JOIN measurements AS plan ON plan.job_id = training.job_id AND plan.attempt = training.attempt
  UNION ALL
  SELECT generation.project_id, generation.gpus, generation.started_at, generation.ended_at,
    (evaluation.plan ->> 'estimated_seconds')::float - extract(epoch FROM clock_timestamp() - generation.started_at)
  FROM month JOIN evaluation_attempts AS generation
    ON generation.project_id = ANY(CAST(:project_ids AS text[]))
    AND (generation.ended_at IS NULL OR generation.ended_at > month.began)
  JOIN evaluations AS evaluation ON evaluation.id = generation.evaluation_id
)
SELECT
  project_id,
  coalesce(sum(gpus * extract(epoch FROM
    coalesce(ended_at, clock_timestamp()) - greatest(started_at, month.began))), 0)::float AS used,
  coalesce(sum(gpus * CASE WHEN ended_at IS NULL THEN greatest(0, seconds_left) END), 0)::float AS held
FROM month, attempt
GROUP BY project_id
"""
# Creations far from the limit share a lock and need not wait for each other's commits; those near it wait for that lock
# before they count. A project that another creation has locked alone counts as near, so that no transaction waits here.
LOCK_FAR_FROM_LIMIT = text(
    f"""
    WITH queued AS MATERIALIZED (
      SELECT count(*) AS jobs FROM jobs
      WHERE project_id = :project_id AND state IN ({sql_string_list(QUEUED_STATES)})
    )
    SELECT 1 FROM projects, queued
    WHERE projects.id = :project_id AND max_gpu_seconds_per_month IS NULL
      AND queued.jobs <= coalesce(max_queued_jobs, :default_max_queued_jobs) - :margin
    FOR SHARE OF projects SKIP LOCKED
    """
)


@dataclass(frozen=True)
class QuotaUsage:
    stored_bytes: int
    queued_jobs: int
    running_jobs: int
    gpu_seconds_this_month: float
    held_gpu_seconds: float


def project_usage(session: Session, project_id: str) -> QuotaUsage:
    return usage_by_project(session, [project_id])[project_id]


def usage_by_project(session: Session, project_ids: Sequence[str]) -> dict[str, QuotaUsage]:
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
        each: QuotaUsage(
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
    query = select(func.count()).select_from(Job).where(Job.project_id == project_id, Job.state.in_(QUEUED_STATES))
    return session.scalar(query) or 0


def lock_far_from_limit(session: Session, project_id: str, default_max_queued_jobs: int, margin: int) -> bool:
    """Lock the project, shared, if it may queue `margin` more jobs and has no limit of GPU-seconds; else False."""
    values = {"project_id": project_id, "default_max_queued_jobs": default_max_queued_jobs, "margin": margin}
    return session.execute(LOCK_FAR_FROM_LIMIT, values).first() is not None


def gpu_seconds(session: Session, project_id: str) -> tuple[float, float]:
    """(GPU-seconds used this month, GPU-seconds reserved for the rest of running attempts)."""
    return _gpu_seconds(session, [project_id]).get(project_id, (0.0, 0.0))


def _gpu_seconds(session: Session, project_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    rows = session.execute(text(GPU_SECONDS), {"project_ids": list(project_ids)})
    return {row.project_id: (row.used, row.held) for row in rows}
