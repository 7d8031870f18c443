"""Queue positions: the input of a forecast, its result in `queue_places`, and events about waits. Never commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.db.jobs.events import append_event, next_event_seq
from app.db.notifications import CHANNEL, QUEUE_CHANGED
from app.db.scheduling.fair_queue import SECONDS_LEFT
from app.db.tables import Job, QueuePlace
from app.domain.jobs.states import JobState, Reason
from app.domain.scheduling.forecast import JobForecast
from app.domain.scheduling.preemption import Preemption, RunningJob
from app.domain.scheduling.worker_capacity import WorkerCapacity

MAX_EVENTS_PER_ROUND = 100  # as thousands of jobs may wait for one missing model

RUNNING = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now)
SELECT job.id AS job_id, job.project_id, job.lease_owner, job.attempt, job.priority, job.is_urgent,
  job.times_yielded AS preemption_count,
  job.yield_requested_at IS NOT NULL AS is_preempting,
  job.phase = 'training' AND job.desired = 'run' AS is_stoppable,
  extract(epoch FROM moment.now - attempt.started_at)::float8 AS ran_seconds, {SECONDS_LEFT} AS seconds_left,
  coalesce(attempt.budget_bytes, 0) AS reserved_bytes
FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
WHERE NOT attempt.is_counted AND attempt.kind = 'train' AND attempt.ended_at IS NULL AND job.state = 'running'
ORDER BY job.seq
"""
# A start is a whole minute, so that polling clients get a 304 as long as it hardly moves.
WRITE_PLACES = """
INSERT INTO queue_places AS old (job_id, project_id, position, expected_start_at, waiting_for, waiting_since)
SELECT job_id, project_id, position, date_trunc('minute', now + seconds * interval '1 second' + interval '30 seconds'),
  waiting_for, CASE WHEN waiting_for IS NOT NULL THEN now END
FROM (SELECT clock_timestamp() AS now) AS moment, unnest(CAST(:job_ids AS text[]), CAST(:project_ids AS text[]),
  CAST(:positions AS bigint[]), CAST(:seconds AS float8[]), CAST(:waiting_for AS text[]))
  AS given(job_id, project_id, position, seconds, waiting_for)
ON CONFLICT (job_id) DO UPDATE SET position = excluded.position, expected_start_at = excluded.expected_start_at,
  waiting_for = excluded.waiting_for,
  waiting_since =
    CASE WHEN excluded.waiting_for IS NOT NULL THEN coalesce(old.waiting_since, excluded.waiting_since) END
WHERE (old.position, old.expected_start_at, old.waiting_for)
  IS DISTINCT FROM (excluded.position, excluded.expected_start_at, excluded.waiting_for)
RETURNING job_id
"""
DELETE_PLACES = "DELETE FROM queue_places WHERE job_id <> ALL(CAST(:job_ids AS text[]))"


def running_jobs(
    session: Session, capacities: Mapping[str, WorkerCapacity], shares: Mapping[str, float]
) -> list[RunningJob]:
    """The running jobs of the workers whose capacities are given. `shares` are those of the projects."""
    jobs = []
    for row in session.execute(text(RUNNING)):
        if capacity := capacities.get(row.lease_owner):
            freed = capacity.as_slot if row.reserved_bytes < capacity.memory_bytes else capacity
            jobs.append(RunningJob(capacity=freed, share=shares.get(row.project_id, 0.0), **row._mapping))
    return jobs


def write_positions(session: Session, placed: Sequence[JobForecast]) -> int:
    """Write the positions, and delete those of jobs that have left the queue; the number of rows that changed."""
    columns = list(zip(*placed, strict=True)) or [()] * len(JobForecast._fields)
    names = ("job_ids", "project_ids", "positions", "seconds", "waiting_for")
    values = {name: list(column) for name, column in zip(names, columns, strict=True)}
    session.execute(text(DELETE_PLACES), {"job_ids": values["job_ids"]})
    changed = len(session.execute(text(WRITE_PLACES), values).all())
    if changed:  # wakes requests with `?wait=`, whose responses contain the position
        session.execute(select(func.pg_notify(CHANNEL, QUEUE_CHANGED)))
    return changed


def append_wait_events(session: Session, delay_seconds: float) -> int:
    """Append an event to each job that no live worker can take, or that waits for a whole GPU, for `delay_seconds`.

    Append another one when a worker can take it. Return the number of events.
    """
    has_lasted = QueuePlace.waiting_since < func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, delay_seconds)
    return _append_wait_event(session, ~QueuePlace.has_wait_event & has_lasted, True) + _append_wait_event(
        session, QueuePlace.has_wait_event & QueuePlace.waiting_for.is_(None), False
    )


def request_preemption(session: Session, preemption: Preemption) -> bool:
    """Request the preemption of a running attempt; False if it is over or requested already.

    It has its own column, so that the user's `desired` stays. The event names the urgent job only to its own project.
    """
    victim, urgent = preemption.victim, preemption.urgent
    job = session.scalar(
        update(Job)
        .where(
            Job.id == victim.job_id,
            Job.attempt == victim.attempt,
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
