"""The limiter of everything that API keys share fairly: database connections, threads, checks, event streams."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, Self, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from app.api.transport.disconnect import run_until_disconnect
from app.errors import Unavailable
from app.services.datasets.check_process import CheckProcess

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
MAX_SHORT_CHECKS = 2  # beside the long ones, so that small files do not wait for large ones
ACQUIRE_TIMEOUT_SECONDS = 10.0  # for a database connection


class FairLimiter:
    """At most `limit` permits at once, at most `per_owner` for one owner. For one event loop, without a lock."""

    def __init__(self, limit: int, per_owner: int | None = None, timeout_seconds: float | None = None) -> None:
        self.free_permits = limit  # read-only for callers
        self.per_owner = limit if per_owner is None else per_owner
        self.timeout_seconds = timeout_seconds
        self._held: Counter[str] = Counter()
        self._queues: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        self.threads = CapacityLimiter(limit)  # never blocks: each thread holds a permit

    async def acquire(self, owner: str) -> None:
        """Wait for a permit. Cancelling the wait leaves the queue."""
        if self.free_permits and self.has_room(owner) and owner not in self._queues:
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

    def has_room(self, owner: str) -> bool:
        """Whether the owner has fewer permits than `per_owner`."""
        return self._held[owner] < self.per_owner

    def release(self, owner: str) -> None:
        self.free_permits += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._grant_waiting()

    def permit(self, owner: str) -> Permit:
        """A permit for `async with`."""
        return Permit(self, owner)

    async def run(
        self, owner: str, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run `work` in a thread while holding a permit."""
        async with self.permit(owner):
            return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self.threads)

    def _grant(self, owner: str) -> None:
        self.free_permits -= 1
        self._held[owner] += 1

    def _grant_waiting(self) -> None:
        """Grant free permits to the waiting owners by round robin: an owner moves to the end after each grant."""
        while self.free_permits:
            owner = next(filter(self.has_room, self._queues), None)
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


class Permit:
    """The right of one request to a part of what `limiter` limits. It may be released and acquired again meanwhile."""

    def __init__(self, limiter: FairLimiter, owner: str) -> None:
        self._limiter = limiter
        self._owner = owner
        self._is_held = False

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.release()

    async def acquire(self) -> None:
        """Wait for the permit without holding a thread. Raises Unavailable after the timeout of the limiter."""
        try:
            async with asyncio.timeout(self._limiter.timeout_seconds):
                await self._limiter.acquire(self._owner)
        except TimeoutError as error:
            raise Unavailable("All database connections are in use; try again in a few seconds.") from error
        self._is_held = True

    def release(self) -> None:
        """Release the permit. A second call does nothing."""
        if self._is_held:
            self._is_held = False
            self._limiter.release(self._owner)


class CheckLimiter:
    """Limits concurrent checks to `processes` long and MAX_SHORT_CHECKS short ones.

    One key never holds all places of long checks, so that the checks of another key can start. One instance per API
    process.
    """

    def __init__(self, processes: int) -> None:
        self._long = FairLimiter(processes, per_owner=max(1, processes - 1))
        self._short = FairLimiter(MAX_SHORT_CHECKS)

    async def run(self, request: Request, owner: str, is_long: bool, work: Callable[[CheckProcess], Result]) -> Result:
        """Run `work` in a thread once `owner`, an API key, has a permit. The request's body has been read.

        Raises ClientDisconnect as soon as the client disconnects; its place in the queue is released, and its process
        is killed.
        """
        return await run_until_disconnect(request, _run_check(self._long if is_long else self._short, owner, work))


async def _run_check(limiter: FairLimiter, owner: str, work: Callable[[CheckProcess], Result]) -> Result:
    async with limiter.permit(owner):
        check = CheckProcess()
        thread = asyncio.ensure_future(to_thread.run_sync(partial(work, check), limiter=limiter.threads))
        try:
            await asyncio.wait([thread])
        finally:  # a cancelled request keeps its permit until its process has ended
            check.cancel()
            await asyncio.gather(thread, return_exceptions=True)
        return thread.result()
