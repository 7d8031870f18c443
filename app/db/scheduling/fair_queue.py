"""The order of the queue in SQL: the usage of projects, and the job that a worker claims next.

app.domain.scheduling.fair_share defines the numbers. Times are clock_timestamp() of the server, read once a statement.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from sqlalchemy import Double, ScalarSelect, Subquery, Text, column, func, select, text
from sqlalchemy.orm import Session

from app.db.tables import Job
from app.domain.scheduling.fair_share import DEFAULT_DURATION_SECONDS, HALF_LIFE_SECONDS, MAX_HALF_LIVES, ProjectShare
from app.domain.scheduling.forecast import QueuedJob
from app.domain.scheduling.worker_capacity import JobRequirements, WorkerCapacity

Kind = Literal["validate", "train"]
LOCKS: dict[Kind, int] = {"validate": 0x636C61696D01, "train": 0x636C61696D02}  # "claim"
IDLE_TIMEOUT = "10s"  # a worker that freezes between its claim and its COMMIT must not block the claims of others
CANDIDATES_PER_PROJECT = 3  # more than one, as the first ones may be locked by a concurrent cancel or pause

# The remaining seconds of the attempt `attempt` of the job `job`: by the trainer's estimate, else by the plan.
SECONDS_LEFT = f"""
greatest(0, coalesce(
  CASE WHEN job.phase = 'training'  -- in earlier phases, `progress` is that of an earlier attempt
    THEN (job.progress->>'estimated_finish')::float8 - extract(epoch FROM moment.now)::float8 END,
  coalesce(job.planned_seconds, {DEFAULT_DURATION_SECONDS})
    - extract(epoch FROM moment.now - attempt.started_at)::float8
))"""
# The order of the queue, for the claim and the positions. Within a project: urgent jobs, then by priority, then by age.
# Between projects: urgent jobs, then the job before whose start its project has used, holds and plans the fewest GPU
# seconds, divided by its weight. In what a project plans, a job counts one GPU.
PROJECT_ORDER = "waiting.is_urgent DESC, waiting.priority DESC, waiting.seq"
PLANNED_SECONDS = f"""coalesce(waiting.planned_seconds, {DEFAULT_DURATION_SECONDS})
  * CASE WHEN (waiting.progress->>'total_steps')::float8 > 0  -- less the share of steps that earlier attempts have made
    THEN greatest(0, 1 - coalesce((waiting.progress->>'step')::float8, 0) / (waiting.progress->>'total_steps')::float8)
    ELSE 1 END"""
PLANNED_BEFORE = f"""coalesce(sum({PLANNED_SECONDS}) OVER (
    PARTITION BY waiting.project_id ORDER BY {PROJECT_ORDER} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
  ), 0) AS planned_before"""
QUEUE_ORDER = """candidate.is_urgent DESC,
  (candidate.used + candidate.held + candidate.planned_before) / candidate.weight, candidate.seq"""
# CTEs that end in `project_share`: one row per project with its decayed usage. `active` are the attempts that
# `project_usage` does not include yet: running ones, and those that ended after the last `count_usage`.
PROJECT_SHARE = f"""
moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
active AS (
  SELECT attempt.project_id, attempt.gpus * attempt.gpu_share AS gpus, attempt.ended_at IS NULL AS is_open,
    CASE WHEN attempt.ended_at IS NULL THEN {SECONDS_LEFT} ELSE 0 END AS seconds_left,
    least({MAX_HALF_LIVES}, extract(epoch FROM moment.now - attempt.started_at)::float8 / :half_life) AS began,
    least({MAX_HALF_LIVES},
      extract(epoch FROM moment.now - coalesce(attempt.ended_at, moment.now))::float8 / :half_life) AS ended
  FROM moment, attempts AS attempt JOIN jobs AS job ON job.id = attempt.job_id
  WHERE NOT attempt.is_counted AND attempt.kind = 'train'
  UNION ALL  -- evaluations use GPU time, but are no running jobs
  SELECT attempt.project_id, attempt.gpus, false,
    CASE WHEN attempt.ended_at IS NULL THEN greatest(0, coalesce(
      (evaluation.plan->>'estimated_seconds')::float8
        - extract(epoch FROM moment.now - attempt.started_at)::float8, 0)) ELSE 0 END,
    least({MAX_HALF_LIVES}, extract(epoch FROM moment.now - attempt.started_at)::float8 / :half_life),
    least({MAX_HALF_LIVES},
      extract(epoch FROM moment.now - coalesce(attempt.ended_at, moment.now))::float8 / :half_life)
  FROM moment, evaluation_attempts AS attempt JOIN evaluations AS evaluation ON evaluation.id = attempt.evaluation_id
  WHERE NOT attempt.is_counted
),
activity AS MATERIALIZED (
  SELECT project_id, count(*) FILTER (WHERE is_open) AS running, sum(gpus * seconds_left) AS held,
    sum(gpus * :half_life / ln(2::float8) * (power(0.5::float8, ended) - power(0.5::float8, began))) AS used
  FROM active GROUP BY project_id
),
project_share AS MATERIALIZED (
  SELECT project.id AS project_id, project.share_weight AS weight, project.max_running_jobs AS max_running,
    coalesce(activity.running, 0) AS running, coalesce(activity.held, 0) AS held, usage.validation_turn_at,
    coalesce(activity.used, 0) + coalesce(usage.gpu_seconds * power(0.5::float8, least({MAX_HALF_LIVES},
      greatest(0, extract(epoch FROM moment.now - usage.counted_at)::float8) / :half_life)), 0) AS used
  FROM moment, projects AS project
  LEFT JOIN project_usage AS usage ON usage.project_id = project.id
  LEFT JOIN activity ON activity.project_id = project.id
)"""
READ_PROJECT_SHARES = f"""
WITH {PROJECT_SHARE}
SELECT project_id, used, held, weight, running, max_running FROM project_share
"""
SELECT_SHARES = f"""
WITH {PROJECT_SHARE}
SELECT project_id, (used + held) / weight AS share FROM project_share
"""
# The first jobs of each project, then among them the job whose project has the lowest share. PostgreSQL evaluates the
# last WHERE again on the newest version of the row when it has locked it.
SELECT_TRAINING_JOB = f"""
WITH {PROJECT_SHARE},
candidate AS (
  SELECT job.*, project_share.*
  FROM moment, project_share CROSS JOIN LATERAL (
    SELECT waiting.id, waiting.is_urgent, waiting.seq, {PLANNED_BEFORE}
    FROM jobs AS waiting
    WHERE waiting.project_id = project_share.project_id
      AND waiting.state = 'queued' AND waiting.lease_owner IS NULL AND waiting.desired = 'run'
      AND waiting.run_after <= moment.now
      AND (CAST(:models AS text[]) IS NULL OR waiting.base_model = ANY(CAST(:models AS text[])))
      AND (CAST(:labels AS jsonb) IS NULL OR waiting.worker_labels <@ CAST(:labels AS jsonb))
      AND (CAST(:usable_bytes AS bigint) IS NULL OR CAST(:usable_bytes AS bigint) >= coalesce(
        CASE CAST(:device_kind AS text) WHEN 'cuda' THEN waiting.needed_cuda_bytes
        ELSE waiting.needed_cpu_bytes END, 0))
    ORDER BY {PROJECT_ORDER} LIMIT {CANDIDATES_PER_PROJECT}
  ) AS job
  WHERE project_share.max_running IS NULL OR project_share.running < project_share.max_running
)
SELECT waiting.id
FROM candidate JOIN jobs AS waiting ON waiting.id = candidate.id
WHERE waiting.state = 'queued' AND waiting.lease_owner IS NULL AND waiting.desired = 'run'
ORDER BY {QUEUE_ORDER} LIMIT 1 FOR UPDATE OF waiting SKIP LOCKED
"""
WAITING_JOBS = f"""
WITH {PROJECT_SHARE},
candidate AS (
  SELECT waiting.*, {PLANNED_SECONDS} AS seconds, {PLANNED_BEFORE}, project_share.used, project_share.held,
    project_share.weight
  FROM project_share JOIN jobs AS waiting USING (project_id) WHERE waiting.state = 'queued' AND waiting.desired = 'run'
)
SELECT id, project_id, is_urgent, base_model, worker_labels::text, needed_cpu_bytes, needed_cuda_bytes, seconds,
  greatest(0, extract(epoch FROM run_after - moment.now)::float8)
FROM candidate, moment ORDER BY {QUEUE_ORDER}
"""
# Validations take seconds, so projects take turns: the one whose last validation began first comes next.
SELECT_JOB_TO_VALIDATE = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
candidate AS (
  SELECT job.*, usage.validation_turn_at
  FROM moment, projects AS project LEFT JOIN project_usage AS usage ON usage.project_id = project.id
  CROSS JOIN LATERAL (
    SELECT waiting.id, waiting.is_urgent, waiting.seq,
      row_number() OVER (ORDER BY {PROJECT_ORDER}) AS rank
    FROM jobs AS waiting
    WHERE waiting.project_id = project.id
      AND waiting.state = 'validating_files' AND waiting.lease_owner IS NULL AND waiting.desired = 'run'
      AND waiting.run_after <= moment.now
    ORDER BY {PROJECT_ORDER} LIMIT {CANDIDATES_PER_PROJECT}
  ) AS job
)
SELECT waiting.id
FROM candidate JOIN jobs AS waiting ON waiting.id = candidate.id
WHERE waiting.state = 'validating_files' AND waiting.lease_owner IS NULL AND waiting.desired = 'run'
ORDER BY candidate.is_urgent DESC, candidate.rank, candidate.validation_turn_at NULLS FIRST, candidate.seq
LIMIT 1 FOR UPDATE OF waiting SKIP LOCKED
"""
COUNT_USAGE = f"""
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now),
trained AS (
  UPDATE attempts SET is_counted = true WHERE NOT is_counted AND kind = 'train' AND ended_at IS NOT NULL
  RETURNING project_id, gpus * gpu_share AS gpus, started_at, ended_at
),
evaluated AS (
  UPDATE evaluation_attempts SET is_counted = true WHERE NOT is_counted AND ended_at IS NOT NULL
  RETURNING project_id, gpus, started_at, ended_at
),
done AS (
  SELECT attempt.project_id, attempt.gpus * CAST(:half_life AS float8) / ln(2::float8) * (
    power(0.5::float8, least({MAX_HALF_LIVES},
      greatest(0, extract(epoch FROM moment.now - attempt.ended_at)::float8) / :half_life))
    - power(0.5::float8, least({MAX_HALF_LIVES},
      greatest(0, extract(epoch FROM moment.now - attempt.started_at)::float8) / :half_life))) AS used
  FROM moment, (SELECT * FROM trained UNION ALL SELECT * FROM evaluated) AS attempt
)
INSERT INTO project_usage AS usage (project_id, gpu_seconds, counted_at)
SELECT done.project_id, sum(greatest(0, done.used)), max(moment.now) FROM done, moment GROUP BY done.project_id
ON CONFLICT (project_id) DO UPDATE SET counted_at = excluded.counted_at,
  gpu_seconds = excluded.gpu_seconds + usage.gpu_seconds * power(0.5::float8, least({MAX_HALF_LIVES},
    greatest(0, extract(epoch FROM excluded.counted_at - usage.counted_at)::float8) / :half_life))
"""
RECORD_VALIDATION_TURN = """
INSERT INTO project_usage (project_id, validation_turn_at) VALUES (:project_id, clock_timestamp())
ON CONFLICT (project_id) DO UPDATE SET validation_turn_at = excluded.validation_turn_at
"""


def lock_claims(session: Session, kind: Kind) -> None:
    """Serialize the claims of a kind until the transaction ends, so that a claim sees all earlier ones.

    Without it, two concurrent claims could exceed a project's limit together. A claim takes milliseconds, and
    PostgreSQL ends the transaction of a worker that stops responding.
    """
    session.execute(
        select(
            func.set_config("idle_in_transaction_session_timeout", IDLE_TIMEOUT, True),
            func.pg_advisory_xact_lock(LOCKS[kind]),
        )
    )


def select_job_to_validate() -> ScalarSelect[Any]:
    """Subquery for the claim: the id of the next job to validate, its row locked."""
    return text(SELECT_JOB_TO_VALIDATE).columns(Job.id).scalar_subquery()


def select_training_job(offer: WorkerCapacity | None, half_life: float = HALF_LIFE_SECONDS) -> ScalarSelect[Any]:
    """Subquery for the claim: the id of the next job that fits a worker of this capacity, its row locked.

    Without `offer` every job fits.
    """
    values: dict[str, Any] = dict.fromkeys(("models", "labels", "usable_bytes", "device_kind"))
    if offer is not None:
        values["models"] = None if offer.models is None else sorted(offer.models)
        values["labels"] = None if offer.labels is None else json.dumps(sorted(offer.labels))
        values["usable_bytes"], values["device_kind"] = offer.usable_bytes, offer.kind
    return text(SELECT_TRAINING_JOB).bindparams(half_life=half_life, **values).columns(Job.id).scalar_subquery()


def waiting_jobs(session: Session, half_life: float = HALF_LIFE_SECONDS) -> list[QueuedJob]:
    """All queued jobs that no client has paused, in the order of the queue."""
    needs: dict[tuple[Any, ...], JobRequirements] = {}  # thousands of jobs share a few distinct requirements
    jobs = []
    for job_id, project_id, is_urgent, *needed, seconds, pause in session.execute(
        text(WAITING_JOBS), {"half_life": half_life}
    ):
        if (key := tuple(needed)) not in needs:
            base_model, labels, cpu_bytes, cuda_bytes = key
            needs[key] = JobRequirements(base_model, frozenset(json.loads(labels)), cpu_bytes, cuda_bytes)
        jobs.append(QueuedJob(job_id, project_id, needs[key], is_urgent, seconds, pause))
    return jobs


def select_shares(half_life: float = HALF_LIFE_SECONDS) -> Subquery:
    """Subquery with `project_id` and `share` of every project, by which other queues order their projects."""
    statement = text(SELECT_SHARES).bindparams(half_life=half_life)
    return statement.columns(column("project_id", Text), column("share", Double)).subquery("shares")


def project_shares(session: Session, half_life: float = HALF_LIFE_SECONDS) -> list[ProjectShare]:
    """The usage and share of every project at this moment."""
    rows = session.execute(text(READ_PROJECT_SHARES), {"half_life": half_life})
    return [ProjectShare(row.project_id, row.used, row.held, row.weight, row.running, row.max_running) for row in rows]


def count_usage(session: Session, half_life: float = HALF_LIFE_SECONDS) -> None:
    """Add ended attempts to `project_usage`. It changes no share, as PROJECT_SHARE includes uncounted attempts."""
    session.execute(text(COUNT_USAGE), {"half_life": half_life})


def record_validation_turn(session: Session, project_id: str) -> None:
    """Record that a validation of this project begins, so that other projects come next."""
    session.execute(text(RECORD_VALIDATION_TURN), {"project_id": project_id})
