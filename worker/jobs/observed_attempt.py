"""What operators see of an attempt while it runs: metrics, and the context of its log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import structlog

from app.telemetry import metrics
from worker.jobs.lease import LeaseKeeper

AttemptKind = Literal["validate", "train", "export"]


@contextmanager
def observed_attempt(kind: AttemptKind, keeper: LeaseKeeper) -> Iterator[None]:
    """Count the attempt of `keeper`, and add the ids of its job or export to all log lines of the block.

    Threads that are created within the block have the same context if they run `contextvars.copy_context().run`.
    """
    lease, began_at = keeper.lease, time.monotonic()
    subject = "export" if kind == "export" else "job"
    metrics.CLAIMS.labels(kind).inc()
    metrics.ATTEMPTS_RUNNING.labels(kind).inc()
    try:
        with structlog.contextvars.bound_contextvars(**{subject: lease.job_id, "attempt": lease.attempt}):
            yield
    finally:
        metrics.ATTEMPTS_RUNNING.labels(kind).dec()
        metrics.count_attempt(kind, keeper.outcome, time.monotonic() - began_at)
