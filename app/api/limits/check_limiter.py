"""A limit on concurrent checks of datasets: API keys share it fairly, and a disconnect ends the check."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.limits.fair_limiter import FairLimiter
from app.api.transport.disconnect import wait_for_disconnect
from app.services.datasets.check_process import Check, CheckCancelledError

Result = TypeVar("Result")

MAX_SHORT_CHECKS = 2  # beside the long ones, so that small files do not wait for large ones
MAX_QUERY_THREADS = 4  # threads that read the rows of a plan from the database


class CheckLimiter:
    """Limits concurrent checks to `processes` long and MAX_SHORT_CHECKS short ones.

    One key never holds all places of long checks, so that the checks of another key can start. One instance per API
    process.
    """

    def __init__(self, processes: int) -> None:
        self._long = FairLimiter(processes, per_owner=max(1, processes - 1))
        self._short = FairLimiter(MAX_SHORT_CHECKS)
        self._queries = FairLimiter(MAX_QUERY_THREADS)
        # This limiter never blocks: each thread holds a permit of `_long` or `_short`.
        self._thread_limiter = CapacityLimiter(processes + MAX_SHORT_CHECKS)

    async def run_query(self, owner: str, work: Callable[[], Result]) -> Result:
        """Run what precedes a check in a thread: milliseconds of validation and database reads."""
        return await self._queries.run(owner, work)

    async def run(self, request: Request, owner: str, is_long: bool, work: Callable[[Check], Result]) -> Result:
        """Run `work` in a thread once `owner`, an API key, has a permit. The request's body has been read.

        Raises ClientDisconnect as soon as the client disconnects; its place in the queue is released, and its process
        is killed.
        """
        limiter = self._long if is_long else self._short
        disconnect_task = asyncio.create_task(wait_for_disconnect(request))
        try:
            await _acquire(limiter, owner, disconnect_task)
            check = Check()
            disconnect_task.add_done_callback(lambda _: check.cancel())
            try:
                return await to_thread.run_sync(partial(work, check), limiter=self._thread_limiter)
            except CheckCancelledError:
                raise _disconnect_error(disconnect_task) from None
            finally:
                check.cancel()  # this task itself may have been cancelled by the shutdown of the server
                limiter.release(owner)
        finally:
            disconnect_task.cancel()


async def _acquire(limiter: FairLimiter, owner: str, disconnect_task: asyncio.Task[None]) -> None:
    """Acquire a permit. Raises ClientDisconnect when `disconnect_task` is done first."""

    def expire(_: object) -> None:
        timeout.reschedule(0)

    try:
        async with asyncio.timeout(None) as timeout:
            disconnect_task.add_done_callback(expire)
            try:
                await limiter.acquire(owner)
            finally:
                disconnect_task.remove_done_callback(expire)
    except TimeoutError:
        raise _disconnect_error(disconnect_task) from None


def _disconnect_error(disconnect_task: asyncio.Task[None]) -> BaseException:
    """ClientDisconnect, or the RequestTimeout of a client that did not send all of its body."""
    return disconnect_task.exception() or ClientDisconnect()
