"""Records of a job: events, checkpoints, the metrics of its steps, attempts, and the log of its trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.jobs import checkpoints, events
from app.db.jobs.events import LossCurve
from app.db.tables import Attempt, Checkpoint, JobEvent, JobLog
from app.domain.jobs.events import downsample
from app.errors import NotFound
from app.services import resources
from app.services.jobs import jobs

MIN_BUCKETS = 250  # the shape of a curve of few points is chosen among more of them


def event_page(
    session: Session, project_id: str, job_id: str, limit: int, after: str | None, type: str | None = None
) -> list[JobEvent]:
    """The events of a job, of one type or of both, newest first. Raises NotFound, and BadRequest for `after`."""
    job = jobs.get(session, project_id, job_id)
    only = (JobEvent.type == type,) if type is not None else ()
    return resources.page(session, JobEvent, limit, after, JobEvent.job_id == job.id, only=only)


def checkpoint_page(session: Session, project_id: str, job_id: str, limit: int, after: str | None) -> list[Checkpoint]:
    """The kept checkpoints: first the job's result, as clients expect, then the others, latest step first.

    The result may be an earlier step, as the best one can be promoted. Raises NotFound, and BadRequest for `after`.
    """
    job = jobs.get(session, project_id, job_id)
    is_result = func.coalesce(Checkpoint.name == job.fine_tuned_model, False)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.retired_at.is_(None))
    if after is not None:
        last = session.scalar(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.id == after))
        if last is None:
            raise jobs.unknown_cursor_error("checkpoint", after)
        query = query.where(is_result.is_(False))
        if last.name != job.fine_tuned_model:
            query = query.where(Checkpoint.step_number < last.step_number)
    page = session.scalars(query.order_by(is_result.desc(), Checkpoint.step_number.desc()).limit(limit)).all()
    best = checkpoints.best(session, job.id)  # it may be on another page
    for checkpoint in page:
        checkpoint.is_best = checkpoint is best
    return list(page)


def metrics(session: Session, project_id: str, job_id: str, max_points: int | None) -> tuple[list[dict[str, Any]], int]:
    """The metrics of all steps, or of at most `max_points` selected ones, oldest first; and the number of all steps.

    Raises NotFound.
    """
    job = jobs.get(session, project_id, job_id)
    if max_points is None:
        rows = events.all_metrics(session, job.id)
        return rows, len(rows)
    found = events.loss_points(session, job.id, max(max_points, MIN_BUCKETS))
    chosen = downsample(found.points, max_points, found.extremes)
    return events.event_data(session, job.id, [point.row for point in chosen]), found.total


def loss_curves(session: Session, project_id: str, job_ids: Sequence[str], points: int) -> list[LossCurve]:
    """The loss curves of several jobs, in the order of `job_ids`. Raises NotFound, which names every unknown job."""
    found = events.loss_curves(session, project_id, job_ids, points)
    if missing := [job_id for job_id in job_ids if job_id not in found]:
        raise NotFound(f"jobs: this project has no job {', '.join(missing)}", "jobs")
    return [found[job_id] for job_id in job_ids]


def attempts(session: Session, project_id: str, job_id: str) -> list[Attempt]:
    """The attempts of a job, oldest first. Raises NotFound."""
    job = jobs.get(session, project_id, job_id)
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)))


def log(session: Session, project_id: str, job_id: str, attempt: int | None) -> JobLog | None:
    """The log of an attempt; without `attempt` the newest log, or None if there is none. Raises NotFound."""
    job = jobs.get(session, project_id, job_id)
    job_log = events.newest_log(session, job.id, attempt)
    if job_log is None and attempt is not None:
        available = ", ".join(map(str, events.attempts_with_log(session, job.id))) or "none"
        raise NotFound(
            f"attempt: there is no log of attempt {attempt}; attempts of this job with a log: {available}", "attempt"
        )
    return job_log
