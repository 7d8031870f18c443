"""The training time of a job as the API returns it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


def training_seconds(job: Mapping[str, Any], now: float | None = None) -> float | None:
    """Return the duration of the training attempts, of a running one until now; None before the first one."""
    if job["started_at"] is None:
        return None
    now = now or time.time()
    return float(job["training_seconds"] + max(0.0, now - (job["attempt_started_at"] or now)))
