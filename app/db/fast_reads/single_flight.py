"""Request coalescing: identical reads at one moment share one query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any


class SingleFlight:
    """Coalesce identical concurrent reads: a caller shares an in-flight read that started at or after `since`.

    No result is kept after its read has ended. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._in_flight: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def do(self, key: Hashable, since: float, read: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a `read` that started at `since` or later, by the loop's clock. Raises what `read` raises."""
        started_at, task = self._in_flight.get(key, (0.0, None))
        if task is None or started_at < since:
            task = self._start(key, read)
        return await asyncio.shield(task)

    def _start(self, key: Hashable, read: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(read())
        entry = self._in_flight[key] = (loop.time(), task)

        def forget(done: asyncio.Task[Any]) -> None:
            if self._in_flight.get(key) is entry:
                del self._in_flight[key]
            if not done.cancelled():
                done.exception()  # retrieved here, as every caller may have disconnected

        task.add_done_callback(forget)
        return task
