"""A limit on the event streams that one API key has open in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import QuotaExceeded


class StreamLimiter:
    """At most `limit` open streams of a key. For one event loop, without a lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, key_id: str) -> Iterator[None]:
        """Count a stream of the key until the block ends. Raises QuotaExceeded."""
        if self._open[key_id] >= self._limit:
            text = f"max_event_streams: this API key has {self._limit:,} open event streams, the limit; close one"
            raise QuotaExceeded(text, "max_event_streams")
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]
