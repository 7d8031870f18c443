"""A concurrency limit that API keys share fairly: whose turn it is depends on the key, not on how many requests wait.

A semaphore serves requests in the order they came, so one key with a thousand of them keeps every other key waiting.
Here the keys that wait take turns (round robin), and each key's own requests stay in their order.
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
    """At most `limit` holders at once, at most `per_owner` of one owner. For one event loop, without a lock."""

    def __init__(self, limit: int, per_owner: int | None = None) -> None:
        self.free = limit  # permits; to be read only
        self._per_owner = limit if per_owner is None else per_owner
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        self._threads = CapacityLimiter(limit)  # never waited for: whoever takes a thread holds a permit

    async def acquire(self, owner: str) -> None:
        """Wait for a permit. Cancelling the wait gives the place in the queue up."""
        if self.free and self._held[owner] < self._per_owner and owner not in self._waiting:
            self._take(owner)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, OrderedDict())[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was granted in the same moment
                self.release(owner)
            else:
                self._forget(owner, turn)
            raise

    def release(self, owner: str) -> None:
        self.free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._grant()

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

    def _take(self, owner: str) -> None:
        self.free -= 1
        self._held[owner] += 1

    def _grant(self) -> None:
        """Give what is free to the owners in turn; one that has had its turn goes to the end."""
        while self.free:
            owner = next((owner for owner in self._waiting if self._held[owner] < self._per_owner), None)
            if owner is None:
                return
            turn, _ = self._waiting[owner].popitem(last=False)
            if self._waiting[owner]:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            if not turn.cancelled():
                self._take(owner)
                turn.set_result(None)

    def _forget(self, owner: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(owner, OrderedDict())
        turns.pop(turn, None)
        if not turns:
            self._waiting.pop(owner, None)
