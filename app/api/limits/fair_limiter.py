"""A concurrency limit that API keys share fairly.

A semaphore serves requests in order of arrival, so one key with a thousand requests would delay every other key.
Here permits are granted to the waiting keys by round robin, and each key's own requests stay in order.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class FairLimiter:
    """At most `limit` permits at once, at most `per_owner` for one owner. For one event loop, without a lock."""

    def __init__(self, limit: int, per_owner: int | None = None) -> None:
        self.free_permits = limit  # read-only for callers
        self._per_owner = limit if per_owner is None else per_owner
        self._held: Counter[str] = Counter()
        self._queues: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        self._threads = CapacityLimiter(limit)  # never blocks: each thread holds a permit

    async def acquire(self, owner: str) -> None:
        """Wait for a permit. Cancelling the wait leaves the queue."""
        if self.free_permits and self._held[owner] < self._per_owner and owner not in self._queues:
            self._grant(owner)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, OrderedDict())[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # granted in the same iteration of the event loop
                self.release(owner)
            else:
                self._remove(owner, waiter)
            raise

    def release(self, owner: str) -> None:
        self.free_permits += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._grant_waiting()

    @asynccontextmanager
    async def permit(self, owner: str) -> AsyncIterator[None]:
        await self.acquire(owner)
        try:
            yield
        finally:
            self.release(owner)

    async def run(
        self, owner: str, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run `work` in a thread while holding a permit."""
        async with self.permit(owner):
            return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._threads)

    def _grant(self, owner: str) -> None:
        self.free_permits -= 1
        self._held[owner] += 1

    def _grant_waiting(self) -> None:
        """Grant free permits to the waiting owners by round robin: an owner moves to the end after each grant."""
        while self.free_permits:
            owner = next((owner for owner in self._queues if self._held[owner] < self._per_owner), None)
            if owner is None:
                return
            waiter, _ = self._queues[owner].popitem(last=False)
            if self._queues[owner]:
                self._queues.move_to_end(owner)
            else:
                del self._queues[owner]
            if not waiter.cancelled():
                self._grant(owner)
                waiter.set_result(None)

    def _remove(self, owner: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._queues.get(owner, OrderedDict())
        waiters.pop(waiter, None)
        if not waiters:
            self._queues.pop(owner, None)
