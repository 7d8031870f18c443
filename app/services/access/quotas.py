"""Quotas: checks of limits, in the transaction that creates a row and before it does.

Each check raises QuotaExceeded, whose `param` is the name of the limit.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from app.db.access import usage
from app.db.tables import Project
from app.domain.error_text.json_text import as_json
from app.errors import QuotaExceeded
from app.services.access import projects

MAX_IN_FLIGHT = 250  # creations that are not committed yet: more than PostgreSQL has connections (100)


def require_room(
    session: Session,
    project_id: str,
    limit: str,
    maximum: int,
    count: Callable[[Session, str], int],
    remedy: str,
    more: int = 1,
) -> None:
    """Check that what `count` counts and `more` are at most `maximum`; `limit` is its name.

    The project's row is locked first, so that the creations of a project are serialized and cannot exceed the limit
    together. Raises QuotaExceeded.
    """
    projects.lock(session, project_id)
    used = count(session, project_id)
    if used + more > maximum:
        text = f"{limit}: the project may have {maximum:,} and has {used:,}, so {more:,} more do not fit; {remedy}"
        raise QuotaExceeded(text, limit)


def require_storage(session: Session, project_id: str, size_bytes: int) -> None:
    """Check that the project may store `size_bytes` more. Raises QuotaExceeded."""
    maximum = session.get_one(Project, project_id).max_stored_bytes
    if maximum is None:
        return
    remedy = "delete files (those of unfinished jobs count until the jobs end), or ask an admin for a higher limit"
    require_room(session, project_id, "max_stored_bytes", maximum, usage.stored_bytes, remedy, size_bytes)


def require_queue_quota(session: Session, project_id: str, default_max_queued_jobs: int, more: int = 1) -> None:
    """Check that the project may queue `more` jobs, by its queued jobs and its GPU-seconds of this month.

    Far from the limit the check of a single job is one statement. Raises QuotaExceeded.
    """
    if more == 1 and usage.lock_far_from_limit(session, project_id, default_max_queued_jobs, 2 * MAX_IN_FLIGHT):
        return
    project = session.get_one(Project, project_id)
    maximum = default_max_queued_jobs if project.max_queued_jobs is None else project.max_queued_jobs
    remedy = "try again when one of them runs, cancel one, or ask an admin for a higher limit"
    require_room(session, project_id, "max_queued_jobs", maximum, usage.queued_jobs, remedy, more)
    if project.max_gpu_seconds_per_month is not None:
        _refuse_spent_month(project, usage.gpu_seconds(session, project_id), project.max_gpu_seconds_per_month)


def _refuse_spent_month(project: Project, seconds: tuple[float, float], limit: int) -> None:
    used, held = seconds
    if used + held >= limit:
        raise QuotaExceeded(
            f"Monthly limit reached: project {as_json(project.name)} may use {limit:,} GPU-seconds; {used:,.0f} are "
            f"used and {held:,.0f} reserved for running jobs. Usage is reset on the first of the month (UTC); an admin "
            "can raise max_gpu_seconds_per_month.",
            "max_gpu_seconds_per_month",
        )
