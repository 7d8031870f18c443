"""A limit on the number of requests that are in a transaction at the same time.

A request gives its thread back between its endpoint and its commit, and keeps its connection. With more requests than
connections, every thread could wait for a connection while every connection waits for a thread: a deadlock until the
pool times out.
"""

from __future__ import annotations

import asyncio

from app.api.limits.fair_limiter import FairLimiter
from app.errors import Unavailable

ACQUIRE_TIMEOUT_SECONDS = 10.0


class ConnectionPermit:
    """The right of one request to a database connection. `limiter` is shared by all requests, fairly by API key."""

    def __init__(self, limiter: FairLimiter, owner: str = "") -> None:
        self._limiter = limiter
        self._owner = owner
        self._is_held = False

    async def acquire(self) -> None:
        """Wait for the permit without holding a thread. Raises Unavailable after ACQUIRE_TIMEOUT_SECONDS."""
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT_SECONDS):
                await self._limiter.acquire(self._owner)
        except TimeoutError as error:
            raise Unavailable("All database connections are in use; try again in a few seconds.") from error
        self._is_held = True

    def release(self) -> None:
        """Release the permit. A second call does nothing."""
        if self._is_held:
            self._is_held = False
            self._limiter.release(self._owner)
