"""Attempts of jobs. Never commits."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Attempt


def of_job(session: Session, job_id: str) -> list[Attempt]:
    """All attempts of a job, oldest first."""
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt)))
