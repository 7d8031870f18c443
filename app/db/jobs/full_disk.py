"""Rows that wait for a disk with space: the pauses between their tries, and the end of the wait. Never commits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import func, null, select, update
from sqlalchemy.orm import Session

from app.db.jobs.events import append_event, next_event_seq
from app.db.tables import Job
from app.domain.artifacts.full_disk import WAITING_FOR_STORAGE, duration_text, pause_seconds
from app.domain.jobs.states import JobState

MAX_JOBS_PER_ROUND = 100


def next_state(
    session: Session, job: Job, state: JobState, limit_seconds: float
) -> tuple[JobState, dict[str, Any], str]:
    """What a full disk makes of a job that would go to `state`: its state, columns, a sentence for the event.

    The caller has locked the row. A validation cannot be paused: it waits for as long as it takes.
    """
    waited_seconds = seconds_since(session, job.storage_full_since)
    if state == JobState.QUEUED and waited_seconds >= limit_seconds:
        return JobState.PAUSED, {"storage_full_since": null()}, _paused_text(limit_seconds)
    if state == JobState.PAUSED:
        return state, {"storage_full_since": null()}, "The job is paused, as was asked; resume it when there is space."
    pause = pause_seconds(waited_seconds)
    text = f"The job waits for space and is tried again in {duration_text(pause)}, from its last snapshot"
    if state == JobState.QUEUED:
        text += f"; after {duration_text(limit_seconds)} without success it is paused"
    return state, {"phase": WAITING_FOR_STORAGE, **wait_columns(job.storage_full_since is None, pause)}, f"{text}."


def wait_columns(is_first: bool, pause: float) -> dict[str, Any]:
    since = {"storage_full_since": func.clock_timestamp()} if is_first else {}
    return {"run_after": func.clock_timestamp() + timedelta(seconds=pause)} | since


def seconds_since(session: Session, moment: Any) -> float:
    """By PostgreSQL's clock, which set the moment; 0 where there is none."""
    if moment is None:
        return 0.0
    return float(session.scalar(select(func.extract("epoch", func.clock_timestamp() - moment))) or 0.0)


def pause_overdue(session: Session, limit_seconds: float) -> list[Job]:
    """Pause the jobs that have waited for space for as long as they may, each with an event.

    One whose pause is over is left alone: it waits for a worker, and its next attempt decides.
    """
    overdue = (
        select(Job.id)
        .where(
            Job.state == JobState.QUEUED,
            Job.phase == WAITING_FOR_STORAGE,
            Job.run_after > func.clock_timestamp(),
            Job.storage_full_since + timedelta(seconds=limit_seconds) <= func.clock_timestamp(),
        )
        .limit(MAX_JOBS_PER_ROUND)
        .with_for_update(skip_locked=True)
    )
    values = {"state": JobState.PAUSED, "phase": null(), "storage_full_since": null(), **next_event_seq()}
    paused = session.scalars(
        update(Job).where(Job.id.in_(overdue)).values(values).returning(Job).execution_options(populate_existing=True)
    ).all()
    for job in paused:
        append_event(session, job, _paused_text(limit_seconds), "warn", data={"reason": job.reason})
    return list(paused)


def _paused_text(limit_seconds: float) -> str:
    return (
        f"The disk has been full for {duration_text(limit_seconds)}, so the job is paused. It keeps its last snapshot: "
        "free space, then resume it."
    )
