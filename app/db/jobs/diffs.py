"""Where a job ran and how it ended, by its events and attempts: the input of a diff of two jobs. Never commits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Attempt, JobEvent


def last_start_data(session: Session, job_id: str) -> dict[str, Any] | None:
    """The data of the last event about a started trainer: device, versions, counts of the dataset."""
    return session.scalar(
        select(JobEvent.data)
        .where(JobEvent.job_id == job_id, JobEvent.type == "message", JobEvent.data.has_key("versions"))
        .order_by(JobEvent.seq.desc())
        .limit(1)
    )


def last_metrics_data(session: Session, job_id: str) -> dict[str, Any] | None:
    return session.scalar(
        select(JobEvent.data)
        .where(JobEvent.job_id == job_id, JobEvent.type == "metrics")
        .order_by(JobEvent.seq.desc())
        .limit(1)
    )


def last_training_worker(session: Session, job_id: str) -> str | None:
    """The worker of the last training attempt, without the suffix that changes with each start."""
    worker = session.scalar(
        select(Attempt.worker)
        .where(Attempt.job_id == job_id, Attempt.kind == "train")
        .order_by(Attempt.attempt.desc())
        .limit(1)
    )
    return None if worker is None else worker.partition("#")[0]
