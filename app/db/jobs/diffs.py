"""What a job's events and attempts say of where it ran and how it ended. Never commits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Attempt, JobEvent


def last_start_data(session: Session, job_id: str) -> dict[str, Any] | None:
    """What the trainer of the last attempt said when it had loaded everything: device, versions, what it reads."""
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
    """The worker of the last attempt to train, without the part that changes with each start of it."""
    worker = session.scalar(
        select(Attempt.worker)
        .where(Attempt.job_id == job_id, Attempt.kind == "train")
        .order_by(Attempt.attempt.desc())
        .limit(1)
    )
    return None if worker is None else worker.partition("#")[0]
