from __future__ import annotations

import asyncio
from contextlib import suppress

from app.api.limits import FairLimiter


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Waiters:
    """Tasks that wait for a permit, and the order in which they got one."""

    def __init__(self, limiter: FairLimiter) -> None:
        self.limiter = limiter
        self.granted: list[str] = []

    def begin(self, name: str) -> asyncio.Task[None]:
        async def wait() -> None:
            await self.limiter.acquire(name[0])
            self.granted.append(name)

        return asyncio.create_task(wait())


def test_owners_take_turns_and_each_ones_requests_keep_their_order() -> None:
    async def scenario() -> list[str]:
        limiter = FairLimiter(1)
        await limiter.acquire("x")
        waiters = Waiters(limiter)
        tasks = [waiters.begin(name) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1")]
        await settle()
        for name in "xabcaba":
            limiter.release(name)
            await settle()
        await asyncio.gather(*tasks)
        return waiters.granted

    assert asyncio.run(scenario()) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_no_owner_has_more_than_its_share() -> None:
    async def scenario() -> list[str]:
        waiters = Waiters(FairLimiter(2, per_owner=1))
        tasks = [waiters.begin(name) for name in ("a1", "a2", "b1")]
        await settle()
        tasks[1].cancel()
        return waiters.granted

    assert asyncio.run(scenario()) == ["a1", "b1"]


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        limiter = FairLimiter(1)
        await limiter.acquire("a")
        waiters = Waiters(limiter)
        first, second, third = (waiters.begin(name) for name in ("a1", "b1", "c1"))
        await settle()
        second.cancel()
        await settle()
        limiter.release("a")
        first.cancel()  # in the moment in which its turn has come
        with suppress(asyncio.CancelledError):
            await first
        await third
        assert waiters.granted == ["c1"]
        limiter.release("c")
        assert limiter.free_permits == 1

    asyncio.run(scenario())


def test_threads_are_bounded_by_the_permits() -> None:
    async def scenario() -> int:
        limiter, running, most = FairLimiter(3), 0, 0
        begun = asyncio.Semaphore(0)

        def work() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            asyncio.run_coroutine_threadsafe(_release(begun), loop).result(10)
            running -= 1

        loop = asyncio.get_running_loop()
        await asyncio.gather(*(limiter.run("a", work) for _ in range(12)))
        return most

    async def _release(semaphore: asyncio.Semaphore) -> None:
        semaphore.release()

    assert 1 <= asyncio.run(scenario()) <= 3
