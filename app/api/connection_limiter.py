"""How many requests may be in a transaction at the same time.

A request gives its thread back between its endpoint and its commit, and keeps its connection. Let in more of them than
there are connections, and every thread may wait for a connection while every connection waits for a thread: the API
stands still until the pool gives up.
"""

from __future__ import annotations

import asyncio

from app.api.fair_limiter import FairLimiter
from app.errors import Unavailable

PATIENCE_SECONDS = 10.0


class Slot:
    """The right of one request to a connection. `free` is what is left for all of them; API keys take turns."""

    def __init__(self, free: FairLimiter, owner: str = "") -> None:
        self._free = free
        self._owner = owner
        self._is_held = False

    async def take(self) -> None:
        """Waits without a thread. Raises Unavailable."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._free.acquire(self._owner)
        except TimeoutError as error:
            raise Unavailable("Too many requests are at work at once; try again in a few seconds") from error
        self._is_held = True

    def leave(self) -> None:
        if self._is_held:
            self._is_held = False
            self._free.release(self._owner)
