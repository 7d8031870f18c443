"""Attempts of jobs. Never commits."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Attempt


def slot_bytes(session: Session, job_id: str, attempt: int) -> int | None:
    """The memory budget of an attempt in a slot that shares its GPU; None if it has the whole GPU."""
    row = session.get(Attempt, (job_id, attempt))
    return row.budget_bytes if row is not None and row.gpu_share < 1 else None


def of_job(session: Session, job_id: str) -> list[Attempt]:
    """All attempts of a job, oldest first."""
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt)))
