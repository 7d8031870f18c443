"""Events of jobs. The number of an event is taken from the job's row, in the UPDATE that the event reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.db.base import core_table
from app.db.ids import new_id
from app.db.tables import Job, JobEvent
from app.domain.jobs.step_metrics import Point

INSERT = insert(core_table(JobEvent))


def next_event_seq() -> dict[str, Any]:
    """The part of an UPDATE's `values` that takes the next event number; the row lock makes the numbers gap-free."""
    return {"event_seq": Job.event_seq + 1}


def append_event(
    session: Session,
    job: Job,
    message: str,
    level: str = "info",
    type: str = "message",
    data: Mapping[str, Any] | None = None,
    event_id: str | None = None,
) -> None:
    """Insert the event whose number `job.event_seq` was taken by `next_event_seq` in this transaction."""
    event = {
        "id": event_id or new_id("ftevent"),
        "project_id": job.project_id,
        "job_id": job.id,
        "seq": job.event_seq,
        "attempt": job.attempt,
        "level": level,
        "type": type,
        "message": message,
        "data": dict(data or {}),
    }
    session.execute(INSERT, event)


def get(session: Session, job_id: str, event_id: str) -> JobEvent | None:
    return session.scalar(select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id == event_id))


def page(
    session: Session, job_id: str, limit: int, after: JobEvent | None = None, type: str | None = None
) -> list[JobEvent]:
    """A page of events, newest first, of one type or of both; `after` is the last event of the previous page."""
    query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq.desc()).limit(limit)
    if after is not None:
        query = query.where(JobEvent.seq < after.seq)
    if type is not None:
        query = query.where(JobEvent.type == type)
    return list(session.scalars(query))


def loss_points(session: Session, job_id: str) -> list[Point]:
    """The loss of every step, oldest first, with the event's number as its `row`: a tenth of the size of all metrics.

    A loss that was not finite is 0 here: a spike in a chart, which thinning keeps.
    """
    data = JobEvent.data
    rows = session.execute(
        select(
            JobEvent.seq,
            data["step"].as_integer().label("step"),
            data["train_loss"].as_float().label("loss"),
            data["full_valid_loss"].astext.is_not(None).label("is_validated"),
        )
        .where(JobEvent.job_id == job_id, JobEvent.type == "metrics")
        .order_by(JobEvent.seq)
    )
    latest = {
        row.step: Point(row.step, row.loss or 0.0, row.is_validated, row.seq, is_finite=row.loss is not None)
        for row in rows
    }
    return [point for _, point in sorted(latest.items())]


def event_data(session: Session, job_id: str, seqs: Sequence[int]) -> list[dict[str, Any]]:
    """The data of the events with these numbers, in order of their steps."""
    rows = session.scalars(select(JobEvent.data).where(JobEvent.job_id == job_id, JobEvent.seq.in_(seqs)))
    return sorted(rows, key=lambda data: int(data["step"]))


def all_metrics(session: Session, job_id: str) -> list[dict[str, Any]]:
    """The data of all metrics events, oldest first, one per step: the latest of a repeated step."""
    rows = session.execute(
        select(JobEvent.data).where(JobEvent.job_id == job_id, JobEvent.type == "metrics").order_by(JobEvent.seq)
    ).scalars()
    return [data for _, data in sorted({int(data["step"]): data for data in rows}.items())]
