"""One query for all who ask while another one runs, and a new one for whoever asks later."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from app.db.fast_reads import pool
from app.db.fast_reads.keys import fetch_with_key
from app.db.fast_reads.pool import AsyncConnections
from app.errors import Unavailable

QUERY = select(1)


class Source(AsyncConnections):
    """Queries that end on request; each returns the doubled value of every even `id`."""

    def __init__(self) -> None:
        super().__init__(create_engine("postgresql+psycopg://"), 1)
        self.asked: list[list[str]] = []
        self._ends: list[asyncio.Future[None]] = []

    async def fetch_all(self, query: Any, values: Mapping[str, Any]) -> list[Any]:
        self.asked.append(values["id"])
        self._ends.append(asyncio.get_running_loop().create_future())
        await self._ends[-1]
        numbers = enumerate(map(int, values["id"]), 1)
        return [SimpleNamespace(number=number, value=2 * each) for number, each in numbers if each % 2 == 0]

    async def end(self, error: Exception | None = None, run: int = -1) -> None:
        """End a query, by default the last one, as soon as it has begun."""
        await settle()
        if error is None:
            self._ends[run].set_result(None)
        else:
            self._ends[run].set_exception(error)
        await settle()

    def ask(self, number: int) -> asyncio.Task[Any]:
        return asyncio.create_task(self.fetch_batched(QUERY, {"id": str(number)}))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 5))


@pytest.fixture(autouse=True)
def one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_RUNS", 1)


def test_one_query_answers_all_calls_that_came_while_another_ran() -> None:
    async def story() -> None:
        source = Source()
        first = source.ask(2)
        await settle()
        later = [source.ask(number) for number in (4, 2, 5, 4)]
        await source.end()
        assert (await first).value == 4
        await source.end()
        rows = await asyncio.gather(*later)
        assert [row and row.value for row in rows] == [8, 4, None, 8]
        assert source.asked == [["2"], ["4", "2", "5"]]  # 2 again: the first read may not have seen a later commit

    run(story())


def test_a_cancelled_call_does_not_cancel_the_others() -> None:
    async def story() -> None:
        source = Source()
        first, second = source.ask(2), source.ask(2)
        await settle()
        first.cancel()
        await source.end()
        assert (await second).value == 4

    run(story())


def test_an_error_is_raised_by_all_calls_of_the_query_and_not_by_the_next() -> None:
    async def story() -> None:
        source = Source()
        asking = [source.ask(number) for number in (2, 3)]
        await source.end(ConnectionError())
        for each in asking:
            with pytest.raises(ConnectionError):
                await each
        again = source.ask(2)
        await source.end()
        assert (await again).value == 4

    run(story())


def test_a_call_right_after_the_last_answer_is_answered() -> None:
    async def story() -> None:
        source = Source()

        async def ask_twice() -> list[int]:
            return [(await source.fetch_batched(QUERY, {"id": "2"})).value for _ in range(2)]

        asking = asyncio.create_task(ask_twice())
        await source.end()
        await source.end()
        assert await asking == [4, 4]

    run(story())


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_calls_beyond_the_maximum_of_runs_are_answered_by_the_first_that_ends(
    first_to_end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_RUNS", 2)

    async def story() -> None:
        source = Source()
        running = []
        for number in (2, 4):
            running.append(source.ask(number))
            await settle()
        third = source.ask(6)
        await settle()
        assert source.asked == [["2"], ["4"]]
        await source.end(run=first_to_end)
        assert source.asked == [["2"], ["4"], ["6"]]
        await source.end()
        assert (await third).value == 12
        assert [call.done() for call in running] == [first_to_end == 0, first_to_end == 1]
        await source.end(run=1 - first_to_end)
        assert [(await call).value for call in running] == [4, 8]

    run(story())


def test_a_call_does_not_wait_longer_than_the_timeout_for_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "TIMEOUT_SECONDS", 0.01)

    async def story() -> None:
        source = Source()
        hanging = source.ask(2)
        await settle()
        waiting = source.ask(4)
        for call in (hanging, waiting):
            with pytest.raises(Unavailable):
                await call
        assert source.asked == [["2"]]

    run(story())


def test_calls_of_one_key_write_its_last_use_once() -> None:
    class Due(Source):
        writes = 0

        async def fetch_batched(self, query: Any, values: Mapping[str, str]) -> Any:
            return SimpleNamespace(key_id="key_1", touch_due=True, refusal=None)

        async def fetch_one(self, query: Any, values: Mapping[str, Any]) -> Any:
            self.writes += 1
            await settle()

    async def story() -> None:
        source = Due()
        await asyncio.gather(*(fetch_with_key(source, QUERY, f"secret {number}") for number in range(3)))
        assert source.writes == 1
        await fetch_with_key(source, QUERY, "secret")
        assert source.writes == 2

    run(story())
