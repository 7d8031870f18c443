"""Trainer logs: the end of the standard error of each attempt. Never commits."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.tables import JobLog

MAX_ATTEMPTS = 3


def put(session: Session, job_id: str, project_id: str, attempt: int, text: str, cut_bytes: int) -> None:
    """Replace the log of an attempt. It needs no lease: only this attempt writes the row, and nothing depends on it."""
    row = {"job_id": job_id, "attempt": attempt, "project_id": project_id, "text": text, "cut_bytes": cut_bytes}
    new = {"text": text, "cut_bytes": cut_bytes, "updated_at": func.clock_timestamp()}
    session.execute(
        insert(JobLog).values(**row).on_conflict_do_update(index_elements=[JobLog.job_id, JobLog.attempt], set_=new)
    )
    kept = select(JobLog.attempt).where(JobLog.job_id == job_id).order_by(JobLog.attempt.desc()).limit(MAX_ATTEMPTS)
    session.execute(delete(JobLog).where(JobLog.job_id == job_id, JobLog.attempt.not_in(kept)))


def newest(session: Session, job_id: str, attempt: int | None = None) -> JobLog | None:
    """The log of an attempt, or of the last attempt that has one."""
    query = select(JobLog).where(JobLog.job_id == job_id).order_by(JobLog.attempt.desc()).limit(1)
    if attempt is not None:
        query = query.where(JobLog.attempt == attempt)
    return session.scalar(query)


def attempts_with_log(session: Session, job_id: str) -> list[int]:
    """The attempts that have a log, oldest first."""
    return list(session.scalars(select(JobLog.attempt).where(JobLog.job_id == job_id).order_by(JobLog.attempt)))
