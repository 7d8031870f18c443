"""One read for all who ask at the same moment, and a new one for who needs a newer answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from app.db.fast_reads.pool import SingleFlight


class Source:
    """Reads that end on request, with their number."""

    def __init__(self) -> None:
        self.reads: list[asyncio.Future[int]] = []

    async def read(self) -> int:
        future = asyncio.get_running_loop().create_future()
        self.reads.append(future)
        return int(await future)

    def answer(self, number: int) -> None:
        self.reads[number].set_result(number)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 5))


async def settle() -> float:
    """Everything that can go on has done so; what time it is."""
    for _ in range(5):
        await asyncio.sleep(0)
    return asyncio.get_running_loop().time()


def ask(flights: SingleFlight, source: Source, since: float, what: str = "a") -> asyncio.Task[Any]:
    return asyncio.create_task(flights.do(what, since, source.read))


def test_concurrent_callers_share_a_read_and_a_later_caller_starts_another() -> None:
    async def story() -> None:
        flights, source = SingleFlight(), Source()
        now = await settle()
        asking = [ask(flights, source, now) for _ in range(100)]
        await settle()
        assert len(source.reads) == 1
        source.answer(0)
        assert await asyncio.gather(*asking) == [0] * 100
        another = ask(flights, source, now)
        await settle()
        source.answer(1)
        assert await another == 1

    run(story())


def test_a_read_that_started_before_a_notification_is_not_shared_after_it() -> None:
    async def story() -> None:
        flights, source = SingleFlight(), Source()
        early = ask(flights, source, await settle())
        await settle()
        await asyncio.sleep(0.001)
        notified_at = await settle()
        late = [ask(flights, source, notified_at) for _ in range(2)]
        await settle()
        assert len(source.reads) == 2
        source.answer(0)
        await settle()
        later = ask(flights, source, notified_at)  # the end of the first read did not forget the second
        await settle()
        source.answer(1)
        assert [await early, *await asyncio.gather(*late), await later] == [0, 1, 1, 1]

    run(story())


def test_different_keys_have_different_reads() -> None:
    async def story() -> None:
        flights, source = SingleFlight(), Source()
        now = await settle()
        asking = [ask(flights, source, now, what) for what in "ab"]
        await settle()
        source.answer(0)
        source.answer(1)
        assert await asyncio.gather(*asking) == [0, 1]

    run(story())


def test_a_cancelled_caller_does_not_cancel_the_others() -> None:
    async def story() -> None:
        flights, source = SingleFlight(), Source()
        now = await settle()
        first, second = ask(flights, source, now), ask(flights, source, now)
        await settle()
        first.cancel()
        await settle()
        source.answer(0)
        assert await second == 0

    run(story())


def test_an_error_is_raised_for_all_callers_and_the_next_one_retries() -> None:
    async def story() -> None:
        flights, source = SingleFlight(), Source()
        now = await settle()
        asking = [ask(flights, source, now) for _ in range(2)]
        await settle()
        source.reads[0].set_exception(ConnectionError())
        for each in asking:
            with pytest.raises(ConnectionError):
                await each
        again = ask(flights, source, now)
        await settle()
        source.answer(1)
        assert await again == 1

    run(story())
