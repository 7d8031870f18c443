"""Response bodies of the attempts of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from app.api.schemas.common import Body, unix_seconds, unix_seconds_or_none
from app.db.tables import Attempt
from app.services.queue import public_worker_id


class AttemptBody(Body):
    object: Literal["fine_tuning.job.attempt"]
    attempt: int
    """The number of the attempt; checks and trainings count together."""
    kind: Literal["validate", "train"]
    """`validate` checks the files, `train` trains."""
    worker_id: str
    """The worker, as in `GET /v1/workers`."""
    gpus: int
    """GPUs that the attempt held."""
    gpu_share: float
    """The share of each GPU that it held: less than 1 in a slot of several."""
    memory_budget_bytes: int | None
    """The memory that it reserved on each GPU; null on GPUs that are not shared by several slots."""
    started_at: int
    """Seconds since 1970."""
    ended_at: int | None
    """Seconds since 1970; null while it runs."""
    reason: str | None
    """Why it ended (docs/errors.md); null while it runs, and for a successful check."""


class AttemptList(Body):
    object: Literal["list"]
    data: list[AttemptBody]
    """Oldest first."""


def render_attempts(attempts: Sequence[Attempt]) -> dict[str, Any]:
    return {"object": "list", "data": [_render_attempt(attempt) for attempt in attempts]}


def _render_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.attempt",
        "attempt": attempt.attempt,
        "kind": attempt.kind,
        "worker_id": public_worker_id(attempt.worker),
        "gpus": attempt.gpus,
        "gpu_share": attempt.gpu_share,
        "memory_budget_bytes": attempt.budget_bytes,
        "started_at": unix_seconds(attempt.started_at),
        "ended_at": unix_seconds_or_none(attempt.ended_at),
        "reason": attempt.reason,
    }
