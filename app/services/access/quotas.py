"""Quotas: checks of a project's limits, in the transaction that creates a row and before it does.

A project without the limit is not locked. With it, creations are serialized, so that two cannot exceed it together.
Each check raises QuotaExceeded, whose `param` is the name of the limit.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.access import projects, usage
from app.db.tables import Project
from app.domain.error_text.json_text import as_json
from app.errors import QuotaExceeded


def require_storage(session: Session, project_id: str, size_bytes: int) -> None:
    """Check that the project may store `size_bytes` more. Raises QuotaExceeded."""
    project = projects.lock_limited(session, project_id, "max_stored_bytes")
    if project is None or project.max_stored_bytes is None:
        return
    stored_bytes = usage.stored_bytes(session, project_id)
    if stored_bytes + size_bytes > project.max_stored_bytes:
        raise QuotaExceeded(
            f"Storage limit reached: project {as_json(project.name)} may store {project.max_stored_bytes:,} bytes and "
            f"stores {stored_bytes:,}; {size_bytes:,} more do not fit. Delete files (those of unfinished jobs count "
            "until the jobs end), or ask an admin for a higher max_stored_bytes.",
            "max_stored_bytes",
        )


def require_queue_quota(session: Session, project: Project) -> None:
    """Check that the project may queue another job, by its queued jobs and its GPU-seconds of this month.

    `project` was read in this transaction; its limits are read again with the lock. Raises QuotaExceeded.
    """
    if project.max_queued_jobs is None and project.max_gpu_seconds_per_month is None:
        return
    locked = projects.lock_limited(session, project.id, "max_queued_jobs", "max_gpu_seconds_per_month")
    if locked is None:
        return
    if locked.max_queued_jobs is not None:
        _refuse_full_queue(locked, usage.queued_jobs(session, locked.id), locked.max_queued_jobs)
    if locked.max_gpu_seconds_per_month is not None:
        _refuse_spent_month(locked, usage.gpu_seconds(session, locked.id), locked.max_gpu_seconds_per_month)


def _refuse_full_queue(project: Project, queued: int, limit: int) -> None:
    if queued >= limit:
        raise QuotaExceeded(
            f"Queue limit reached: project {as_json(project.name)} may have {limit} queued jobs and has {queued}. Try "
            "again when one of them runs, cancel one, or ask an admin for a higher max_queued_jobs.",
            "max_queued_jobs",
        )


def _refuse_spent_month(project: Project, seconds: tuple[float, float], limit: int) -> None:
    used, held = seconds
    if used + held >= limit:
        raise QuotaExceeded(
            f"Monthly limit reached: project {as_json(project.name)} may use {limit:,} GPU-seconds; {used:,.0f} are "
            f"used and {held:,.0f} reserved for running jobs. Usage is reset on the first of the month (UTC); an admin "
            "can raise max_gpu_seconds_per_month.",
            "max_gpu_seconds_per_month",
        )
