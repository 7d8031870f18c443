"""Records of a job: the metrics of its steps, and the log of its trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db.jobs import events
from app.db.jobs.events import LossCurve
from app.db.jobs.jobs import attempts_of
from app.db.tables import Attempt, JobLog
from app.domain.jobs.step_metrics import downsample
from app.errors import NotFound
from app.services.jobs import jobs

MIN_BUCKETS = 250  # the shape of a curve of few points is chosen among more of them


@dataclass(frozen=True)
class MetricRows:
    """Metrics of steps, oldest first: `rows` are thinned out of `total`."""

    rows: list[dict[str, Any]]
    total: int


def metrics(session: Session, project_id: str, job_id: str, max_points: int | None) -> MetricRows:
    """The metrics of all steps, or of at most `max_points` selected ones. Raises NotFound."""
    job = jobs.get(session, project_id, job_id)
    if max_points is None:
        rows = events.all_metrics(session, job.id)
        return MetricRows(rows, len(rows))
    found = events.loss_points(session, job.id, max(max_points, MIN_BUCKETS))
    chosen = downsample(found.points, max_points, found.extremes)
    return MetricRows(events.event_data(session, job.id, [point.row for point in chosen]), found.total)


def loss_curves(session: Session, project_id: str, job_ids: Sequence[str], points: int) -> list[LossCurve]:
    """The loss curves of several jobs, in the order of `job_ids`. Raises NotFound, which names every unknown job."""
    found = events.loss_curves(session, project_id, job_ids, points)
    if missing := [job_id for job_id in job_ids if job_id not in found]:
        raise NotFound(f"jobs: this project has no job {', '.join(missing)}", "jobs")
    return [found[job_id] for job_id in job_ids]


def attempts(session: Session, project_id: str, job_id: str) -> list[Attempt]:
    """The attempts of a job, oldest first. Raises NotFound."""
    return attempts_of(session, jobs.get(session, project_id, job_id).id)


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
