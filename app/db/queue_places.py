"""Where each waiting job stands: what a forecast is made of, and what came of it. Never commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, exists, func, select, text, update
from sqlalchemy.orm import Session

from app.db.changes import CHANNEL, QUEUE_MOVED
from app.db.events import take_seq, tell
from app.db.fair_queue import SECONDS_LEFT
from app.db.tables import Job, QueuePlace
from app.domain.forecast import Placed, Waiting
from app.domain.offers import Need
from app.domain.states import Desired, JobState

TOLD_AT_ONCE = 100  # events a round, should thousands of jobs wait for one model

RUNNING = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now)
SELECT job.id, job.project_id, job.lease_owner, job.attempt, job.priority, job.is_urgent, job.times_yielded,
  job.yield_requested_at IS NOT NULL AS is_asked, job.phase = 'training' AND job.desired = 'run' AS is_stoppable,
  extract(epoch FROM moment.now - attempt.started_at)::float8 AS ran_seconds, {SECONDS_LEFT} AS seconds_left
FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
WHERE NOT attempt.is_counted AND attempt.kind = 'train' AND attempt.ended_at IS NULL AND job.state = 'running'
ORDER BY job.seq
"""
# A start that moves by less than a tenth of the wait, or half a minute, stays where it was: who polls gets a 304.
WRITE = """
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
fresh AS (
  SELECT job_id, project_id, position, waiting_for, moment.now, moment.now + seconds * interval '1 second' AS start_at
  FROM moment, unnest(CAST(:job_ids AS text[]), CAST(:project_ids AS text[]), CAST(:positions AS bigint[]),
    CAST(:seconds AS float8[]), CAST(:waiting_for AS text[]))
    AS given(job_id, project_id, position, seconds, waiting_for)
),
settled AS (
  SELECT fresh.*, CASE WHEN abs(extract(epoch FROM fresh.start_at - old.expected_start_at)) <=
    greatest(30, extract(epoch FROM fresh.start_at - fresh.now) / 10) THEN old.expected_start_at
    ELSE fresh.start_at END AS expected_start_at
  FROM fresh LEFT JOIN queue_places AS old USING (job_id)
  WHERE old.job_id IS NULL OR old.position <> fresh.position OR old.waiting_for IS DISTINCT FROM fresh.waiting_for
    OR (old.expected_start_at IS NULL) <> (fresh.start_at IS NULL)
    OR abs(extract(epoch FROM fresh.start_at - old.expected_start_at)) >
      greatest(30, extract(epoch FROM fresh.start_at - fresh.now) / 10)
)
INSERT INTO queue_places AS old (job_id, project_id, position, expected_start_at, waiting_for, waiting_since)
SELECT job_id, project_id, position, expected_start_at, waiting_for, CASE WHEN waiting_for IS NOT NULL THEN now END
FROM settled
ON CONFLICT (job_id) DO UPDATE SET position = excluded.position, expected_start_at = excluded.expected_start_at,
  waiting_for = excluded.waiting_for,
  waiting_since =
    CASE WHEN excluded.waiting_for IS NOT NULL THEN coalesce(old.waiting_since, excluded.waiting_since) END
"""


@dataclass(frozen=True)
class RunningJob:
    id: str
    project_id: str
    lease_owner: str
    attempt: int
    priority: int
    is_urgent: bool
    times_yielded: int
    is_asked: bool
    is_stoppable: bool
    ran_seconds: float
    seconds_left: float


def running(session: Session) -> list[RunningJob]:
    return [RunningJob(**row._mapping) for row in session.execute(text(RUNNING))]


def waiting(session: Session) -> list[Waiting]:
    """Every job that waits for a GPU. One that has made steps already has so much less to do."""
    rows = session.execute(
        select(
            Job.id, Job.project_id, Job.seq, Job.priority, Job.is_urgent, Job.base_model, Job.worker_labels,
            Job.needed_cpu_bytes, Job.needed_cuda_bytes, Job.planned_seconds, Job.progress,
        ).where(Job.state == JobState.QUEUED, Job.desired == Desired.RUN)
    )  # fmt: skip
    return [
        Waiting(
            row.id, row.project_id, row.seq,
            Need(row.base_model, frozenset(row.worker_labels), row.needed_cpu_bytes, row.needed_cuda_bytes),
            row.priority, row.is_urgent, _seconds_left(row.planned_seconds, row.progress),
        )
        for row in rows
    ]  # fmt: skip


def write(session: Session, placed: Sequence[Placed]) -> None:
    """Rows whose place did not change are left alone."""
    waits = exists().where(Job.id == QueuePlace.job_id, Job.state == JobState.QUEUED, Job.desired == Desired.RUN)
    session.execute(delete(QueuePlace).where(~waits).execution_options(synchronize_session=False))
    if placed:
        values = {
            "job_ids": [each.job_id for each in placed],
            "project_ids": [each.project_id for each in placed],
            "positions": [each.position for each in placed],
            "seconds": [each.start_in_seconds for each in placed],
            "waiting_for": [each.waiting_for for each in placed],
        }
        if session.connection().execute(text(WRITE), values).rowcount:
            session.execute(select(func.pg_notify(CHANNEL, QUEUE_MOVED)))  # who waits by `?wait=` looks at its place


def of(session: Session, job_ids: Sequence[str]) -> dict[str, QueuePlace]:
    """The places of a page of jobs. A job that has just come is the last until the next forecast."""
    if not job_ids:
        return {}
    found = {place.job_id: place for place in session.scalars(select(QueuePlace).where(QueuePlace.job_id.in_(job_ids)))}
    if missing := set(job_ids) - found.keys():
        last = 1 + (session.scalar(select(func.max(QueuePlace.position))) or 0)
        found |= {job_id: QueuePlace(job_id=job_id, position=last) for job_id in missing}
    return found


def tell_of_waits(session: Session, patience_seconds: float) -> int:
    """An event for each job that no living worker can take, and another when one can; how many."""
    lasts = QueuePlace.waiting_since < func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, patience_seconds)
    return _tell(session, ~QueuePlace.is_told & lasts, True) + _tell(
        session, QueuePlace.is_told & QueuePlace.waiting_for.is_(None), False
    )


def ask_to_yield(session: Session, job_id: str, attempt: int) -> bool:
    """The operator's wish, in a column of its own: the user's `desired` stays. False when the attempt is over."""
    job = session.scalar(
        update(Job)
        .where(
            Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING, Job.yield_requested_at.is_(None)
        )
        .values(yield_requested_at=func.clock_timestamp(), **take_seq())
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if job is not None:
        tell(session, job, "The job will give way to an urgent one at its next step, and go on from there later")
    return job is not None


def _tell(session: Session, which: Any, is_told: bool) -> int:
    places = session.scalars(select(QueuePlace).where(which).order_by(QueuePlace.position).limit(TOLD_AT_ONCE)).all()
    for place in places:
        job = session.scalar(
            update(Job)
            .where(Job.id == place.job_id, Job.state == JobState.QUEUED)
            .values(take_seq())
            .returning(Job)
            .execution_options(populate_existing=True)
        )
        place.is_told = is_told
        if job is not None and is_told:
            tell(session, job, f"The job waits. {place.waiting_for}", "warn")
        elif job is not None:
            tell(session, job, "There is a worker again that can take the job")
    return len(places)


def _seconds_left(planned: float | None, progress: Mapping[str, Any] | None) -> float | None:
    done, total = (progress or {}).get("step") or 0, (progress or {}).get("total_steps") or 0
    return planned if planned is None or not total else planned * max(0.0, 1 - done / total)
