"""Reads that many ask for at one moment: one query for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any


class SingleFlight:
    """Who asks while a read of the same thing is under way that began late enough gets what that one finds.

    Nothing is kept once it is answered. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def share(self, what: Hashable, since: float, read: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What a `read` finds that began at `since` or later, by the loop's clock. Raises what it raises."""
        return await asyncio.shield(self._begun_since(what, since) or self._begin(what, read))

    def _begun_since(self, what: Hashable, since: float) -> Awaitable[Any] | None:
        began, task = self._running.get(what, (0.0, None))
        return task if began >= since else None

    def _begin(self, what: Hashable, read: Callable[[], Coroutine[Any, Any, Any]]) -> Awaitable[Any]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(read())
        mine = self._running[what] = (loop.time(), task)

        def forget(done: asyncio.Task[Any]) -> None:
            if self._running.get(what) is mine:
                del self._running[what]
            if not done.cancelled():
                done.exception()  # perhaps everybody who asked has hung up

        task.add_done_callback(forget)
        return task
