"""The checking of data sets for requests: a bounded number at once, shared fairly, ended when the client leaves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.fair_limiter import FairLimiter
from app.api.transport.disconnect import client_gone
from app.services.datasets.check_process import Check, CheckCancelledError

Result = TypeVar("Result")

# Small files are read in this process, by threads: more of them would only share one interpreter.
THREADS = 2
QUESTIONS = 4  # threads that read the rows of a plan from the database


class Checks:
    """At most `processes` checking processes at once, of which one key never takes all: another's need not wait for
    it. Built once per API process.
    """

    def __init__(self, processes: int) -> None:
        self._processes = FairLimiter(processes, per_owner=max(1, processes - 1))
        self._threads = FairLimiter(THREADS)
        self._questions = FairLimiter(QUESTIONS)
        self._workers = CapacityLimiter(processes + THREADS)  # never waited for: whoever takes one holds a permit

    async def ask(self, owner: str, work: Callable[[], Result]) -> Result:
        """Run what precedes a check, in its turn: milliseconds of validation and database."""
        return await self._questions.run(owner, work)

    async def run(self, request: Request, owner: str, needs_process: bool, work: Callable[[Check], Result]) -> Result:
        """Run `work` in a thread when it is the turn of `owner`, an API key. The request's body has been read.

        Raises ClientDisconnect as soon as the client has left: its place in the queue is free then, and its process
        has been killed.
        """
        limiter = self._processes if needs_process else self._threads
        leaving = asyncio.create_task(client_gone(request))
        try:
            await _acquire(limiter, owner, leaving)
            check = Check()
            leaving.add_done_callback(lambda _: check.cancel())
            try:
                return await to_thread.run_sync(partial(work, check), limiter=self._workers)
            except CheckCancelledError:
                raise _why(leaving) from None
            finally:
                check.cancel()  # this task itself may have been cancelled: the server stops
                limiter.release(owner)
        finally:
            leaving.cancel()


def granted_cores() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _acquire(limiter: FairLimiter, owner: str, leaving: asyncio.Task[None]) -> None:
    """Raises ClientDisconnect when `leaving` is done first."""

    def give_up(_: object) -> None:
        patience.reschedule(0)

    try:
        async with asyncio.timeout(None) as patience:
            leaving.add_done_callback(give_up)
            try:
                await limiter.acquire(owner)
            finally:
                leaving.remove_done_callback(give_up)
    except TimeoutError:
        raise _why(leaving) from None


def _why(leaving: asyncio.Task[None]) -> BaseException:
    """ClientDisconnect, or the RequestTimeout of a client that did not send all of its body."""
    return leaving.exception() or ClientDisconnect()
