"""The order of the queue in SQL: what projects have used, and the one job that a worker would take now.

app.domain.scheduling.fair_share defines the numbers. Times are clock_timestamp() of the server, read once a statement.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import ScalarSelect, func, select, text
from sqlalchemy.orm import Session

from app.db.tables import Job
from app.domain.scheduling.fair_share import HALF_LIFE_SECONDS, MOST_HALF_LIVES, UNPLANNED_SECONDS, Standing
from app.domain.scheduling.worker_capacity import Offer

Kind = Literal["validate", "train"]
LOCKS: dict[Kind, int] = {"validate": 0x636C61696D01, "train": 0x636C61696D02}  # "claim"
IDLE_TIMEOUT = "10s"  # a worker that freezes between its claim and its COMMIT must not keep others from theirs
CANDIDATES_PER_PROJECT = 3  # of each project, in case its first ones are being cancelled or paused at this moment

# Of the job `job` in its attempt `attempt`: what is left of its plan, by its own word or by the plan's.
SECONDS_LEFT = f"""
greatest(0, coalesce(
  CASE WHEN job.phase = 'training'  -- before, it is the word of an earlier attempt
    THEN (job.progress->>'estimated_finish')::float8 - extract(epoch FROM moment.now)::float8 END,
  coalesce(job.planned_seconds, {UNPLANNED_SECONDS}) - extract(epoch FROM moment.now - attempt.started_at)::float8
))"""
# Attempts that are not counted yet: those that run, and those that ended since the last count.
PROJECT_USAGE = f"""
moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
active AS (
  SELECT attempt.project_id, attempt.gpus, attempt.ended_at IS NULL AS is_open,
    CASE WHEN attempt.ended_at IS NULL THEN {SECONDS_LEFT} ELSE 0 END AS seconds_left,
    least({MOST_HALF_LIVES}, extract(epoch FROM moment.now - attempt.started_at)::float8 / :half_life) AS began,
    least({MOST_HALF_LIVES},
      extract(epoch FROM moment.now - coalesce(attempt.ended_at, moment.now))::float8 / :half_life) AS ended
  FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
  WHERE NOT attempt.is_counted AND attempt.kind = 'train'
),
activity AS MATERIALIZED (
  SELECT project_id, count(*) FILTER (WHERE is_open) AS running, sum(gpus * seconds_left) AS held,
    sum(gpus * :half_life / ln(2::float8) * (power(0.5::float8, ended) - power(0.5::float8, began))) AS used
  FROM active GROUP BY project_id
),
standing AS MATERIALIZED (
  SELECT project.id AS project_id, project.share_weight AS weight, project.max_running_jobs AS max_running,
    coalesce(activity.running, 0) AS running, coalesce(activity.held, 0) AS held, usage.validation_turn_at,
    coalesce(activity.used, 0) + coalesce(usage.gpu_seconds * power(0.5::float8, least({MOST_HALF_LIVES},
      greatest(0, extract(epoch FROM moment.now - usage.counted_at)::float8) / :half_life)), 0) AS used
  FROM moment, projects AS project
  LEFT JOIN project_usage AS usage ON usage.project_id = project.id
  LEFT JOIN activity ON activity.project_id = project.id
)"""
TURN: dict[Kind, str] = {
    "train": "head.is_urgent DESC, (head.used + head.held) / head.weight, head.number, head.seq",
    "validate": "head.is_urgent DESC, head.number, head.validation_turn_at NULLS FIRST, head.seq",
}
MAY_RUN: dict[Kind, str] = {
    "train": "standing.running < coalesce(standing.max_running, standing.running + 1)",
    "validate": "true",
}
WAITS = """waiting.state = '{state}' AND waiting.lease_owner IS NULL AND waiting.desired = 'run'
      AND waiting.run_after <= moment.now"""
FITS = """
      AND (CAST(:models AS text[]) IS NULL OR waiting.base_model = ANY(CAST(:models AS text[])))
      AND (CAST(:labels AS jsonb) IS NULL OR waiting.worker_labels <@ CAST(:labels AS jsonb))
      AND coalesce(waiting.{needed}, 0) <= :usable_bytes"""
# The few first of each project, then the one whose project's turn it is. The last WHERE is looked at again on the
# row's newest version when it is locked.
NEXT = """
WITH {standing},
head AS (
  SELECT job.*, standing.*
  FROM moment, standing CROSS JOIN LATERAL (
    SELECT waiting.id, waiting.is_urgent, waiting.seq,
      row_number() OVER (ORDER BY waiting.is_urgent DESC, waiting.priority DESC, waiting.seq) AS number
    FROM jobs AS waiting
    WHERE waiting.project_id = standing.project_id AND {waits}{fits}
    ORDER BY waiting.is_urgent DESC, waiting.priority DESC, waiting.seq LIMIT {heads}
  ) AS job
  WHERE {may_run}
)
SELECT waiting.id
FROM head JOIN jobs AS waiting ON waiting.id = head.id
WHERE waiting.state = '{state}' AND waiting.lease_owner IS NULL AND waiting.desired = 'run'
ORDER BY {turn} LIMIT 1 FOR UPDATE OF waiting SKIP LOCKED
"""
COUNT_USAGE = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
done AS (
  UPDATE attempts AS attempt SET is_counted = true FROM moment
  WHERE NOT is_counted AND kind = 'train' AND ended_at IS NOT NULL
  RETURNING attempt.project_id, attempt.gpus * CAST(:half_life AS float8) / ln(2::float8) * (
    power(0.5::float8, least({MOST_HALF_LIVES},
      greatest(0, extract(epoch FROM moment.now - attempt.ended_at)::float8) / :half_life))
    - power(0.5::float8, least({MOST_HALF_LIVES},
      greatest(0, extract(epoch FROM moment.now - attempt.started_at)::float8) / :half_life))) AS used
)
INSERT INTO project_usage AS usage (project_id, gpu_seconds, counted_at)
SELECT done.project_id, sum(greatest(0, done.used)), max(moment.now) FROM done, moment GROUP BY done.project_id
ON CONFLICT (project_id) DO UPDATE SET counted_at = excluded.counted_at,
  gpu_seconds = excluded.gpu_seconds + usage.gpu_seconds * power(0.5::float8, least({MOST_HALF_LIVES},
    greatest(0, extract(epoch FROM excluded.counted_at - usage.counted_at)::float8) / :half_life))
"""
RECORD_VALIDATION_TURN = """
INSERT INTO project_usage (project_id, validation_turn_at) VALUES (:project_id, clock_timestamp())
ON CONFLICT (project_id) DO UPDATE SET validation_turn_at = excluded.validation_turn_at
"""
STATES: dict[Kind, str] = {"validate": "validating_files", "train": "queued"}


def lock_claims(session: Session, kind: Kind) -> None:
    """Claims of a kind come one after the other, each seeing what the one before took: so no limit is ever exceeded.

    A claim takes milliseconds. The lock goes with the transaction, and that with a worker that falls silent.
    """
    session.execute(
        select(
            func.set_config("idle_in_transaction_session_timeout", IDLE_TIMEOUT, True),
            func.pg_advisory_xact_lock(LOCKS[kind]),
        )
    )


def select_next_job(kind: Kind, offer: Offer | None, half_life: float = HALF_LIFE_SECONDS) -> ScalarSelect[Any]:
    """The id of the job whose turn it is on a worker with this offer, its row locked; a subquery for the claim."""
    values: dict[str, Any] = {"half_life": half_life}
    fits = ""
    if offer is not None:
        fits = FITS.format(needed=f"needed_{offer.kind}_bytes")
        values["models"] = None if offer.models is None else sorted(offer.models)
        values["labels"] = None if offer.labels is None else _json_list(offer.labels)
        values["usable_bytes"] = offer.usable_bytes
    state = STATES[kind]
    query = NEXT.format(
        standing=PROJECT_USAGE,
        state=state,
        waits=WAITS.format(state=state),
        fits=fits,
        heads=CANDIDATES_PER_PROJECT,
        may_run=MAY_RUN[kind],
        turn=TURN[kind],
    )
    return text(query).bindparams(**values).columns(Job.id).scalar_subquery()


def project_shares(session: Session, half_life: float = HALF_LIFE_SECONDS) -> list[Standing]:
    """How every project stands at this moment."""
    query = f"WITH {PROJECT_USAGE} SELECT project_id, used, held, weight, running, max_running FROM standing"
    rows = session.execute(text(query), {"half_life": half_life})
    return [Standing(row.project_id, row.used, row.held, row.weight, row.running, row.max_running) for row in rows]


def count_usage(session: Session, half_life: float = HALF_LIFE_SECONDS) -> None:
    """Add attempts that have ended to their projects' usage. What is not added yet counts all the same."""
    session.execute(text(COUNT_USAGE), {"half_life": half_life})


def record_validation_turn(session: Session, project_id: str) -> None:
    """A validation of this project begins; it is the others' turn now."""
    session.execute(text(RECORD_VALIDATION_TURN), {"project_id": project_id})


def _json_list(names: frozenset[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in sorted(names)) + "]"
