"""Rate limit of requests: a token bucket for each project, in this process.

It protects one API process from a client that sends too many requests, so it needs neither the state of other
processes nor a round trip.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class RateLimitStatus(NamedTuple):
    """The rate limit of a project after a request. `wait_seconds` is 0 if the request is allowed."""

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
        """Take a token for a request; without one the request is refused. The bucket holds the tokens of one second."""
        limit = per_second or self._default
        with self._lock:
            bucket = self._filled(project_id, limit)
            is_allowed = bucket.tokens >= 1
            bucket.tokens -= is_allowed
            tokens = bucket.tokens
        return RateLimitStatus(
            limit, max(0, int(tokens)), (limit - tokens) / limit, 0.0 if is_allowed else (1 - tokens) / limit
        )

    def charge(self, project_id: str, tokens: int) -> None:
        """Take more tokens for an allowed request that does the work of several; the next ones wait for them."""
        with self._lock:
            self._buckets[project_id].tokens -= tokens

    def _filled(self, project_id: str, limit: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(project_id)
        if bucket is None:
            bucket = self._buckets[project_id] = _Bucket(limit, now)
        bucket.tokens = min(limit, bucket.tokens + (now - bucket.filled_at) * limit)
        bucket.filled_at = now
        return bucket
