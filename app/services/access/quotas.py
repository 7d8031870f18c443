"""May a project have more? Asked in the transaction that would give it, before the row is written.

A project without the limit is not locked. With it, one creation at a time passes: two cannot both take the last place.
Each raises QuotaExceeded, whose `param` names the limit.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.access import projects, usage
from app.db.tables import Project
from app.domain.error_text.json_text import as_json
from app.errors import QuotaExceeded


def require_storage(session: Session, project_id: str, size_bytes: int) -> None:
    """For so many bytes more."""
    project = projects.lock_limited(session, project_id, "max_stored_bytes")
    if project is None or project.max_stored_bytes is None:
        return
    stored = usage.stored_bytes(session, project_id)
    if stored + size_bytes > project.max_stored_bytes:
        raise QuotaExceeded(
            f"Project {as_json(project.name)} may store {project.max_stored_bytes:,} bytes and stores {stored:,}; "
            f"{size_bytes:,} more do not fit. Delete files (those that unfinished jobs use count until the jobs end), "
            "or ask an admin for a higher max_stored_bytes.",
            "max_stored_bytes",
        )


def require_queue_quota(session: Session, project: Project) -> None:
    """One more job that waits, by their number and by what the project's GPUs have worked this month.

    `project` was read in this transaction; its limits are read again once it is locked.
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
            f"Project {as_json(project.name)} may have {limit} waiting jobs and has {queued}. Try again when one "
            "of them runs, cancel one, or ask an admin for a higher max_queued_jobs.",
            "max_queued_jobs",
        )


def _refuse_spent_month(project: Project, seconds: tuple[float, float], limit: int) -> None:
    used, held = seconds
    if used + held >= limit:
        raise QuotaExceeded(
            f"Project {as_json(project.name)} may use {limit:,} GPU-seconds a month; {used:,.0f} are used and "
            f"{held:,.0f} held for jobs that run. The month begins anew on its first day (UTC); until then an admin "
            "can raise max_gpu_seconds_per_month.",
            "max_gpu_seconds_per_month",
        )
