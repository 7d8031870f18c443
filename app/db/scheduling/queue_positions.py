"""Queue positions: the input of a forecast, its result in `queue_places`, and events about waits. Never commits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.db.jobs.events import append_event, next_event_seq
from app.db.notifications import CHANNEL, QUEUE_CHANGED
from app.db.scheduling.fair_queue import SECONDS_LEFT
from app.db.tables import Job, QueuePlace
from app.domain.jobs.states import JobState, Reason
from app.domain.scheduling.forecast import JobForecast, QueuedJob
from app.domain.scheduling.preemption import Preemption
from app.domain.scheduling.worker_capacity import JobRequirements

MAX_EVENTS_PER_ROUND = 100  # as thousands of jobs may wait for one missing model
# Smaller changes than these are not written, so that polling clients get a 304 as long as little has changed.
START_TOLERANCE_SECONDS, START_TOLERANCE_SHARE = 30.0, 0.1  # of the expected start
POSITION_TOLERANCE_SHARE = 0.01  # the first hundred positions are exact; one finished job moves all jobs behind it

RUNNING = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now)
SELECT job.id, job.project_id, job.lease_owner, job.attempt, job.priority, job.is_urgent,
  job.times_yielded AS preemption_count,
  job.yield_requested_at IS NOT NULL AS is_preemption_requested,
  job.phase = 'training' AND job.desired = 'run' AS can_be_preempted,
  extract(epoch FROM moment.now - attempt.started_at)::float8 AS ran_seconds, {SECONDS_LEFT} AS seconds_left,
  coalesce(attempt.budget_bytes, 0) AS reserved_bytes
FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
WHERE NOT attempt.is_counted AND attempt.kind = 'train' AND attempt.ended_at IS NULL AND job.state = 'running'
ORDER BY job.seq
"""
# The planned seconds shrink by the share of steps that earlier attempts have made.
WAITING = """
SELECT id, project_id, seq, priority, is_urgent, base_model, worker_labels::text, needed_cpu_bytes, needed_cuda_bytes,
  planned_seconds * CASE WHEN (progress->>'total_steps')::float8 > 0
    THEN greatest(0, 1 - coalesce((progress->>'step')::float8, 0) / (progress->>'total_steps')::float8) ELSE 1 END,
  greatest(0, extract(epoch FROM run_after - statement_timestamp())::float8)
FROM jobs WHERE state = 'queued' AND desired = 'run'
"""
READ_PLACES = """
SELECT job_id, position, extract(epoch FROM expected_start_at - statement_timestamp())::float8, waiting_for
FROM queue_places
"""
# A start that moved less than the tolerance keeps its old value, also where another column of the row changes.
WRITE_PLACES = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
fresh AS (
  SELECT job_id, project_id, position, waiting_for, moment.now, moment.now + seconds * interval '1 second' AS start_at
  FROM moment, unnest(CAST(:job_ids AS text[]), CAST(:project_ids AS text[]), CAST(:positions AS bigint[]),
    CAST(:seconds AS float8[]), CAST(:waiting_for AS text[]))
    AS given(job_id, project_id, position, seconds, waiting_for)
),
settled AS (
  SELECT fresh.*, CASE WHEN abs(extract(epoch FROM fresh.start_at - old.expected_start_at)) <=
    greatest({START_TOLERANCE_SECONDS}, {START_TOLERANCE_SHARE} * extract(epoch FROM fresh.start_at - fresh.now))
    THEN old.expected_start_at ELSE fresh.start_at END AS expected_start_at
  FROM fresh LEFT JOIN queue_places AS old USING (job_id)
)
INSERT INTO queue_places AS old (job_id, project_id, position, expected_start_at, waiting_for, waiting_since)
SELECT job_id, project_id, position, expected_start_at, waiting_for, CASE WHEN waiting_for IS NOT NULL THEN now END
FROM settled
ON CONFLICT (job_id) DO UPDATE SET position = excluded.position, expected_start_at = excluded.expected_start_at,
  waiting_for = excluded.waiting_for,
  waiting_since =
    CASE WHEN excluded.waiting_for IS NOT NULL THEN coalesce(old.waiting_since, excluded.waiting_since) END
"""
DELETE_PLACES = "DELETE FROM queue_places WHERE job_id = ANY(CAST(:job_ids AS text[]))"


@dataclass(frozen=True)
class RunningAttempt:
    id: str
    project_id: str
    lease_owner: str
    attempt: int
    priority: int
    is_urgent: bool
    preemption_count: int
    is_preemption_requested: bool
    can_be_preempted: bool
    ran_seconds: float
    seconds_left: float
    reserved_bytes: int  # on each of the GPUs that the slot shares with others; 0 without sharing


def running_attempts(session: Session) -> list[RunningAttempt]:
    return [RunningAttempt(**row._mapping) for row in session.execute(text(RUNNING))]


def waiting_jobs(session: Session) -> list[QueuedJob]:
    """All queued jobs that are not paused."""
    needs: dict[tuple[Any, ...], JobRequirements] = {}  # thousands of jobs share a few distinct requirements
    jobs = []
    for job_id, project_id, seq, priority, is_urgent, *needed, seconds, pause in session.execute(text(WAITING)):
        key = tuple(needed)
        if key not in needs:
            needs[key] = _requirements(*key)
        jobs.append(QueuedJob(job_id, project_id, seq, needs[key], priority, is_urgent, seconds, pause))
    return jobs


def write_positions(session: Session, placed: Sequence[JobForecast]) -> int:
    """Write changed positions, and delete those of jobs that have left the queue; the number of written rows."""
    previous = {
        job_id: (position, seconds, lack) for job_id, position, seconds, lack in session.execute(text(READ_PLACES))
    }
    moved = [each for each in placed if _has_moved(previous.pop(each.job_id, None), each)]
    if previous:
        session.execute(text(DELETE_PLACES), {"job_ids": list(previous)})
    if moved:
        values = {
            "job_ids": [each.job_id for each in moved],
            "project_ids": [each.project_id for each in moved],
            "positions": [each.position for each in moved],
            "seconds": [each.start_in_seconds for each in moved],
            "waiting_for": [each.waiting_for for each in moved],
        }
        session.execute(text(WRITE_PLACES), values)
        session.execute(
            select(func.pg_notify(CHANNEL, QUEUE_CHANGED))
        )  # wakes requests with `?wait=`, whose responses contain the position
    return len(moved)


def append_wait_events(session: Session, delay_seconds: float) -> int:
    """Append an event to each job that no live worker can take, or that waits for a whole GPU, for `delay_seconds`.

    Append another one when a worker can take it. Return the number of events.
    """
    has_lasted = QueuePlace.waiting_since < func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, delay_seconds)
    return _append_wait_event(session, ~QueuePlace.has_wait_event & has_lasted, True) + _append_wait_event(
        session, QueuePlace.has_wait_event & QueuePlace.waiting_for.is_(None), False
    )


def request_preemption(session: Session, preemption: Preemption, attempt: int) -> bool:
    """Request the preemption of a running attempt; False if it is over or requested already.

    It has its own column, so that the user's `desired` stays. The event names the urgent job only to its own project.
    """
    victim, urgent = preemption.victim, preemption.urgent
    job = session.scalar(
        update(Job)
        .where(
            Job.id == victim.job_id,
            Job.attempt == attempt,
            Job.state == JobState.RUNNING,
            Job.yield_requested_at.is_(None),
        )
        .values(yield_requested_at=func.clock_timestamp(), **next_event_seq())
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if job is not None:
        is_own = victim.project_id == urgent.project_id
        name = f"The urgent job {urgent.job_id}" if is_own else "An urgent job of another project"
        text = f"{name} preempts this job at its next step; it will resume from there later"
        data = {"reason": Reason.PREEMPTED, "urgent_job": urgent.job_id if is_own else None}
        append_event(session, job, text, data=data)
    return job is not None


def _append_wait_event(session: Session, which: Any, waits: bool) -> int:
    places = session.scalars(
        select(QueuePlace).where(which).order_by(QueuePlace.position).limit(MAX_EVENTS_PER_ROUND)
    ).all()
    for place in places:
        job = session.scalar(
            update(Job)
            .where(Job.id == place.job_id, Job.state == JobState.QUEUED)
            .values(next_event_seq())
            .returning(Job)
            .execution_options(populate_existing=True)
        )
        place.has_wait_event = waits
        if job is not None and waits:
            append_event(session, job, f"The job waits. {place.waiting_for}", "warn")
        elif job is not None:
            append_event(session, job, "A worker that can take the job is available again")
    return len(places)


def _requirements(base_model: str, labels: str, cpu_bytes: int | None, cuda_bytes: int | None) -> JobRequirements:
    return JobRequirements(base_model, frozenset(json.loads(labels)), cpu_bytes, cuda_bytes)


def _has_moved(old: tuple[int, float | None, str | None] | None, new: JobForecast) -> bool:
    if old is None:
        return True
    position, seconds, lack = old
    if abs(new.position - position) > POSITION_TOLERANCE_SHARE * new.position or lack != new.waiting_for:
        return True
    if seconds is None or new.start_in_seconds is None:
        return seconds is not new.start_in_seconds
    return abs(new.start_in_seconds - seconds) > max(
        START_TOLERANCE_SECONDS, START_TOLERANCE_SHARE * new.start_in_seconds
    )
