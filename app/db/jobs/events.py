"""Events and trainer logs of jobs. Never commits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.jobs import leases
from app.db.tables import Job, JobEvent, JobLog
from app.db.tables.base import core_table
from app.domain.jobs.events import Point

INSERT = insert(core_table(JobEvent))
MAX_LOGS = 3  # of a job: those of its last attempts
# Metrics beside the losses, whose lowest and highest values stay in a thinned chart.
OTHER_METRICS = ("grad_norm", "tokens_per_second", "peak_memory_bytes")
BOUNDS = [(name, bound) for name in OTHER_METRICS for bound in ("min", "max")]
EXTREMES = "".join(
    f"""
UNION ALL (SELECT 0, NULL, NULL, NULL, NULL, NULL, NULL, ARRAY[{name}, step, loss, valid_loss, seq]
  FROM latest, bounds WHERE {name} = {bound}_{name} LIMIT 1)"""
    for name, bound in BOUNDS
)
# The arrays are compared by their first element; numbers of events are exact in a double up to 2^53.
LOSS_POINTS = text(f"""
WITH measured AS (
  SELECT (data ->> 'step')::bigint AS step, seq, (data ->> 'train_loss')::float8 AS loss,
    (data ->> 'full_valid_loss')::float8 AS valid_loss,
    {", ".join(f"(data ->> '{name}')::float8 AS {name}" for name in OTHER_METRICS)}
  FROM job_events WHERE job_id = :job_id AND type = 'metrics'
), latest AS MATERIALIZED (
  SELECT DISTINCT ON (step) * FROM measured ORDER BY step, seq DESC
), bounds AS MATERIALIZED (
  SELECT {", ".join(f"{bound}({name}) AS {bound}_{name}" for name, bound in BOUNDS)} FROM latest
), bucketed AS (
  SELECT *, ntile(:buckets) OVER (ORDER BY step) AS bucket FROM latest
)
SELECT count(*) AS steps,
  min(ARRAY[step, step, loss, valid_loss, seq]) AS first,
  max(ARRAY[step, step, loss, valid_loss, seq]) AS last,
  min(ARRAY[loss, step, loss, valid_loss, seq]) FILTER (WHERE loss IS NOT NULL) AS lowest,
  max(ARRAY[loss, step, loss, valid_loss, seq]) FILTER (WHERE loss IS NOT NULL) AS highest,
  min(ARRAY[valid_loss, step, loss, valid_loss, seq]) FILTER (WHERE valid_loss IS NOT NULL) AS best,
  min(ARRAY[step, step, loss, valid_loss, seq]) FILTER (WHERE loss IS NULL) AS not_finite,
  NULL::float8[] AS extreme
FROM bucketed GROUP BY bucket{EXTREMES}
""")
# Points are reads of the primary key, so their number does not depend on that of the steps.
LOSS_CURVES = text("""
WITH chosen AS (
  SELECT id, event_seq FROM jobs WHERE project_id = :project_id AND deleted_at IS NULL AND id = ANY(:job_ids)
), points AS (
  SELECT chosen.id, point.* FROM chosen CROSS JOIN generate_series(0, :points - 2) AS n CROSS JOIN LATERAL (
    SELECT seq, (data ->> 'step')::float8 AS step, (data ->> 'train_loss')::float8 AS loss FROM job_events
    WHERE job_id = chosen.id AND type = 'metrics' AND seq >= 1 + (event_seq - 1) * n / (:points - 1)
    ORDER BY seq LIMIT 1
  ) AS point
  UNION
  SELECT chosen.id, point.* FROM chosen CROSS JOIN LATERAL (
    SELECT seq, (data ->> 'step')::float8, (data ->> 'train_loss')::float8 FROM job_events
    WHERE job_id = chosen.id AND type = 'metrics' ORDER BY seq DESC LIMIT 1
  ) AS point
)
SELECT chosen.id,
  ARRAY(SELECT ARRAY[step, loss] FROM points WHERE id = chosen.id ORDER BY seq) AS points,
  (SELECT min((data ->> 'full_valid_loss')::float8) FROM job_events WHERE job_id = chosen.id AND type = 'metrics')
    AS best_valid_loss
FROM chosen
""")


@dataclass(frozen=True)
class LossPoints:
    """Points of a loss curve, oldest first, with the event's number as their `row`; selected out of `total` steps.

    `extremes` are those with the lowest and the highest value of another metric.
    """

    points: list[Point]
    total: int
    extremes: list[Point]


@dataclass(frozen=True)
class LossCurve:
    """Evenly spaced points of a loss curve, oldest first up to the last step, and the lowest full validation loss."""

    job_id: str
    steps: list[int]
    train_losses: list[float]
    best_valid_loss: float | None


def next_event_seq() -> dict[str, Any]:
    """The part of an UPDATE's `values` that takes the next event number; the row lock makes the numbers gap-free."""
    return {"event_seq": Job.event_seq + 1}


def update_job(
    session: Session,
    condition: ColumnElement[bool],
    message: str | Callable[[Job], str],
    level: str = "info",
    type: str = "message",
    data: Mapping[str, Any] | None = None,
    event_id: str | None = None,
    **columns: Any,
) -> Job | None:
    """Update the one job of the condition, and append an event; None without a write if there is none.

    A message that depends on the updated job is a function of it.
    """
    job = leases.update_where(session, Job, condition, columns | next_event_seq())
    if job is not None:
        text = message if isinstance(message, str) else message(job)
        append_event(session, job, text, level, type, data, event_id)
    return job


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


def loss_points(session: Session, job_id: str, buckets: int) -> LossPoints:
    """The points of the loss curve that a thinned chart may need: of each of `buckets` equal ranges of steps the first,
    the last, the lowest, the highest, the best validated and one without a finite loss; and the extremes of the other
    metrics.

    A selection by PostgreSQL, as 100,000 steps take seconds to read and thin in Python. Bounds of buckets are those of
    M4 (Jugel et al., 2014), which lose nothing that a chart of as many columns shows.
    """
    rows = session.execute(LOSS_POINTS, {"job_id": job_id, "buckets": buckets}).all()
    points, extremes = {}, []
    for row in rows:
        for found in (row.first, row.last, row.lowest, row.highest, row.best, row.not_finite, row.extreme):
            if found is not None:
                _, step, loss, valid_loss, seq = found
                points[step] = Point(
                    int(step), loss or 0.0, valid_loss is not None, int(seq), loss is not None, valid_loss
                )
        if row.extreme is not None:
            extremes.append(points[row.extreme[1]])
    return LossPoints([point for _, point in sorted(points.items())], sum(row.steps for row in rows), extremes)


def loss_curves(session: Session, project_id: str, job_ids: Sequence[str], points: int) -> dict[str, LossCurve]:
    """By id, the curves of those jobs that the project has, each of at most `points` (at least 2) points."""
    values = {"project_id": project_id, "job_ids": list(job_ids), "points": points}
    rows = session.execute(LOSS_CURVES, values).all()
    return {row.id: _loss_curve(row.id, row.points, row.best_valid_loss) for row in rows}


def _loss_curve(job_id: str, points: Sequence[tuple[float, float | None]], best_valid_loss: float | None) -> LossCurve:
    """`points` are (step, loss) in order of their events; a repeated step replaces those of the earlier attempt."""
    kept: list[tuple[int, float]] = []
    for step, loss in points:
        while kept and kept[-1][0] >= step:
            kept.pop()
        if loss is not None:
            kept.append((int(step), loss))
    return LossCurve(job_id, [step for step, _ in kept], [loss for _, loss in kept], best_valid_loss)


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


def put_log(session: Session, job_id: str, project_id: str, attempt: int, text: str, cut_bytes: int) -> None:
    """Replace the log of an attempt. It needs no lease: only this attempt writes the row, and nothing depends on it."""
    row = {"job_id": job_id, "attempt": attempt, "project_id": project_id, "text": text, "cut_bytes": cut_bytes}
    new = {"text": text, "cut_bytes": cut_bytes, "updated_at": func.clock_timestamp()}
    session.execute(
        postgresql.insert(JobLog)
        .values(**row)
        .on_conflict_do_update(index_elements=[JobLog.job_id, JobLog.attempt], set_=new)
    )
    kept = select(JobLog.attempt).where(JobLog.job_id == job_id).order_by(JobLog.attempt.desc()).limit(MAX_LOGS)
    session.execute(delete(JobLog).where(JobLog.job_id == job_id, JobLog.attempt.not_in(kept)))


def newest_log(session: Session, job_id: str, attempt: int | None = None) -> JobLog | None:
    """The log of an attempt, or of the last attempt that has one."""
    query = select(JobLog).where(JobLog.job_id == job_id).order_by(JobLog.attempt.desc()).limit(1)
    if attempt is not None:
        query = query.where(JobLog.attempt == attempt)
    return session.scalar(query)


def attempts_with_log(session: Session, job_id: str) -> list[int]:
    """The attempts that have a log, oldest first."""
    return list(session.scalars(select(JobLog.attempt).where(JobLog.job_id == job_id).order_by(JobLog.attempt)))
