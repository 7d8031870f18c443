"""The training time of a job as the API returns it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


def training_seconds(job: Mapping[str, Any], now: float | None = None) -> float | None:
    """Return the duration of the training attempts, of a running one until now; None before the first one."""
    if job["started_at"] is None:
        return None
    started_at = job["attempt_started_at"]
    running_seconds = 0.0 if started_at is None else max(0.0, (now or time.time()) - started_at)
    return float(job["training_seconds"] + running_seconds)
