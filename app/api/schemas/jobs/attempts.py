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
    kind: Literal["validate", "train"]
    worker_id: str
    gpus: int
    gpu_share: float
    memory_budget_bytes: int | None
    started_at: int
    ended_at: int | None
    reason: str | None


class AttemptList(Body):
    object: Literal["list"]
    data: list[AttemptBody]


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
