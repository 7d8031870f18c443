"""The order of a list of jobs: by creation, or by a column that people read, with the creation between equals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Float, case, func, literal, select, tuple_
from sqlalchemy.orm import aliased

from app.db.tables import Attempt, Checkpoint, Job, JobEvent
from app.domain.jobs.states import JobState

JobColumn = Literal["created_at", "name", "status", "model", "progress", "train_loss", "valid_loss", "duration"]

Key = ColumnElement[Any]


def order_by(column: JobColumn, is_ascending: bool) -> list[ColumnElement[Any]]:
    """Jobs without the value are last in both directions."""
    keys = [Job.seq] if column == "created_at" else [_key(Job, column, is_ascending), Job.seq]
    return [key.asc() if is_ascending else key.desc() for key in keys]


def is_after(column: JobColumn, is_ascending: bool, last: Job) -> ColumnElement[bool]:
    """Whether a job follows `last` in this order."""
    if column == "created_at":
        return Job.seq > last.seq if is_ascending else Job.seq < last.seq
    row = tuple_(_key(Job, column, is_ascending), Job.seq)
    cursor = aliased(Job)
    key_of_last = select(_key(cursor, column, is_ascending)).where(cursor.id == last.id).scalar_subquery()
    place_of_last = tuple_(key_of_last, literal(last.seq))
    return row > place_of_last if is_ascending else row < place_of_last


def _key(job: type[Job], column: JobColumn, is_ascending: bool) -> Key:
    if column in ("name", "status", "model"):
        return cast(Key, TEXT_KEYS[column](job))
    return func.coalesce(NUMBER_KEYS[column](job), literal(math.inf if is_ascending else -math.inf, Float))


def _progress(job: type[Job]) -> Key:
    done, total = (job.progress[name].as_float() for name in ("step", "total_steps"))
    return case((job.state == JobState.SUCCEEDED, 1.0), else_=done / func.nullif(total, 0))


def _train_loss(job: type[Job]) -> Key:
    """Of the last step."""
    loss = select(JobEvent.data["train_loss"].as_float()).where(JobEvent.job_id == job.id, JobEvent.type == "metrics")
    return loss.order_by(JobEvent.seq.desc()).limit(1).correlate(job).scalar_subquery()


def _valid_loss(job: type[Job]) -> Key:
    """Of the best checkpoint."""
    loss = func.min(Checkpoint.metrics["full_valid_loss"].as_float())
    return select(loss).where(Checkpoint.job_id == job.id).correlate(job).scalar_subquery()


def _seconds(job: type[Job]) -> Key:
    """Of the training attempts, of a running one until now; NULL before the first one."""
    seconds = func.extract("epoch", func.sum(func.coalesce(Attempt.ended_at, func.now()) - Attempt.started_at))
    of_trainings = select(seconds.cast(Float)).where(Attempt.job_id == job.id, Attempt.kind == "train")
    return of_trainings.correlate(job).scalar_subquery()


TEXT_KEYS: dict[str, Callable[[type[Job]], Any]] = {
    "name": lambda job: func.lower(func.coalesce(job.suffix, job.id)),
    "status": lambda job: job.state,
    "model": lambda job: job.base_model,
}
NUMBER_KEYS: dict[str, Callable[[type[Job]], Key]] = {
    "progress": _progress,
    "train_loss": _train_loss,
    "valid_loss": _valid_loss,
    "duration": _seconds,
}
