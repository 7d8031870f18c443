"""What operators see of an attempt while it runs: metrics, a span, and the context of its log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import structlog

from app.db.tables import Job
from app.domain.jobs.states import JobState, Reason
from app.telemetry import metrics, tracing
from worker.jobs.lease import LEASE_LOST, LeaseKeeper, LossCause

AttemptKind = Literal["validate", "train", "export", "evaluate", "registration"]
ID_NAMES = {"export": "export", "evaluate": "evaluation", "registration": "registration"}  # of the row; else "job"
GOOD_REASONS = {reason.value for reason in Reason if reason.final_state != JobState.FAILED} | {LEASE_LOST}


def begin_metrics() -> None:
    """Expose the counters of attempts with 0."""
    kinds = get_args(AttemptKind)
    metrics.begin(metrics.CLAIMS, kinds)
    metrics.begin(metrics.ATTEMPTS_ENDED, kinds, [*(reason.value for reason in Reason), LEASE_LOST])
    metrics.begin(metrics.LEASE_RENEWALS, ["confirmed", "failed"])
    metrics.begin(metrics.LEASES_LOST, get_args(LossCause))
    metrics.begin(metrics.PLAN_RATIO, ["memory", "time"])


@contextmanager
def observed_attempt(kind: AttemptKind, keeper: LeaseKeeper, job: Job | None = None) -> Iterator[None]:
    """Count the attempt of `keeper`, trace it, and add its ids to all log lines of the block.

    Its span belongs to the trace of the request that created `job`; an export's or an evaluation's is the job that it
    belongs to. Threads that are created within the block have the same context if they run
    `contextvars.copy_context().run`.
    """
    lease, began_at = keeper.lease, time.monotonic()
    ids: dict[str, str | int] = {ID_NAMES.get(kind, "job"): lease.job_id, "attempt": lease.attempt}
    if job is not None and job.request_id is not None:
        ids["request_id"] = job.request_id
    metrics.CLAIMS.labels(kind).inc()
    metrics.ATTEMPTS_RUNNING.labels(kind).inc()
    attributes = {f"tunery.{name}": value for name, value in ids.items()}
    with (
        tracing.span(f"{kind} attempt", job.traceparent if job else None, attributes) as span,
        structlog.contextvars.bound_contextvars(**ids),
    ):
        try:
            yield
        finally:
            metrics.ATTEMPTS_RUNNING.labels(kind).dec()
            metrics.count_attempt(kind, keeper.outcome, time.monotonic() - began_at)
            tracing.end_reason(span, keeper.outcome, keeper.outcome not in GOOD_REASONS)
