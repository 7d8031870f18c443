"""Requests a second: a bucket of tokens for each project, in this process.

It guards one API process against a client gone wild, so it needs no other process's word, and costs no round trip.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class RateLimitStatus(NamedTuple):
    """What one request was told. `wait_seconds` is 0 when it may pass."""

    limit: int
    remaining: int
    reset_seconds: float  # until the bucket is full again
    wait_seconds: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    def __init__(self, default_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._default = default_per_second
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, project_id: str, per_second: int | None) -> RateLimitStatus:
        """A request passes if there is a whole token; a second's worth of them may be taken at once."""
        limit = per_second or self._default
        with self._lock:
            bucket = self._filled(project_id, limit)
            passes = bucket.tokens >= 1
            bucket.tokens -= passes
            tokens = bucket.tokens
        return RateLimitStatus(limit, int(tokens), (limit - tokens) / limit, 0.0 if passes else (1 - tokens) / limit)

    def _filled(self, project_id: str, limit: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(project_id)
        if bucket is None:
            bucket = self._buckets[project_id] = _Bucket(limit, now)
        bucket.tokens = min(limit, bucket.tokens + (now - bucket.filled_at) * limit)
        bucket.filled_at = now
        return bucket
