"""Jobs and exports that wait for disk space: delays between retries, and the end of the wait. Never commits."""

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
    """(state, columns, sentence for the event) of a job that would go to `state` after an attempt on a full disk.

    The caller has locked the row. A validation cannot be paused: it is retried without a limit.
    """
    waited_seconds = seconds_since(session, job.storage_full_since)
    if state == JobState.QUEUED and waited_seconds >= limit_seconds:
        return JobState.PAUSED, {"storage_full_since": null()}, _paused_text(limit_seconds)
    if state == JobState.PAUSED:
        return (
            state,
            {"storage_full_since": null()},
            "The job is paused, as requested; resume it when there is free space.",
        )
    delay_seconds = pause_seconds(waited_seconds)
    text = f"The job waits for disk space. It is retried in {duration_text(delay_seconds)} from its last snapshot"
    if state == JobState.QUEUED:
        text += f"; after {duration_text(limit_seconds)} without success it is paused"
    columns = {"phase": WAITING_FOR_STORAGE, **wait_columns(job.storage_full_since is None, delay_seconds)}
    return state, columns, f"{text}."


def wait_columns(is_first: bool, delay_seconds: float) -> dict[str, Any]:
    """The columns of a job or export that is retried in `delay_seconds`; `is_first`: of its first wait in a row."""
    since = {"storage_full_since": func.clock_timestamp()} if is_first else {}
    return {"run_after": func.clock_timestamp() + timedelta(seconds=delay_seconds)} | since


def seconds_since(session: Session, moment: Any) -> float:
    """Seconds since a time that PostgreSQL's clock set; 0 for None."""
    if moment is None:
        return 0.0
    return float(session.scalar(select(func.extract("epoch", func.clock_timestamp() - moment))) or 0.0)


def pause_overdue(session: Session, limit_seconds: float) -> list[Job]:
    """Pause jobs that have waited for space for `limit_seconds`, each with an event.

    A job whose delay is over is not paused here: it waits for a worker, and its next attempt decides.
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
