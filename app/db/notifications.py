"""News of jobs as PostgreSQL tells it: one LISTEN connection in a process, and everybody who waits, without a thread.

A notification only wakes; what is true is read from the rows afterwards. Whenever the connection was made (again),
everybody is woken, so one that broke loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from types import TracebackType

import psycopg
from sqlalchemy import Engine

from app.db.fast_reads.pool import connect_arguments
from app.db.fast_reads.single_flight import SingleFlight
from app.log import get_logger

CHANNEL = "tunery_jobs"  # "project job event_seq", and " queue" when it changed who waits before whom
QUEUE_TOPIC = "queue"  # the topic of those who wait for a place in the queue
QUEUE_CHANGED = f"- - 0 {QUEUE_TOPIC}"  # of no project and no job: places were written anew
QUEUE_DEBOUNCE_SECONDS = 1.0  # one job that leaves moves all others: they are told of a burst once
RECONNECT_SECONDS = 1.0

log = get_logger(__name__)


class NotificationListener:
    """Connects at the first watch. Belongs to one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._arguments = connect_arguments(engine)
        self._watches: defaultdict[str, set[Subscription]] = defaultdict(set)
        self.looks = SingleFlight()  # of those who were woken by the same change
        self._task: asyncio.Task[None] | None = None
        self._queue_told: asyncio.TimerHandle | None = None
        self._is_ending = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._everybody())

    def watch(self, topic: str) -> Subscription:
        """Of a job's id or a project's. What happens from here on is not missed."""
        watch = Subscription(self, topic)
        if self._is_ending:
            watch.close()
        elif self._task is None:
            self._task = asyncio.create_task(self._listen(), name="listen")
        return watch

    def end(self) -> None:
        """The process is about to stop: every wait ends now, and so does every one that begins."""
        self._is_ending = True
        for watch in self._everybody():
            watch.close()

    async def close(self) -> None:
        self.end()
        if self._queue_told is not None:
            self._queue_told.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._task, self._queue_told, self._is_ending = None, None, False

    def add(self, watch: Subscription, topic: str) -> None:
        self._watches[topic].add(watch)

    def remove(self, watch: Subscription, topic: str) -> None:
        self._watches[topic].discard(watch)
        if not self._watches[topic]:
            del self._watches[topic]

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    for watch in self._everybody():
                        watch.wake(None)
                    async for notification in connection.notifies():
                        self._tell(notification.payload)
            except (psycopg.Error, OSError) as error:
                log.warning("not told of changes", error=str(error).split("\n", 1)[0])
            await asyncio.sleep(RECONNECT_SECONDS)

    def _tell(self, payload: str) -> None:
        project_id, job_id, *more = payload.split(" ")
        for topic in (job_id, project_id):
            for watch in self._watches.get(topic, ()):
                watch.wake(job_id)
        if QUEUE_TOPIC in more and self._queue_told is None and QUEUE_TOPIC in self._watches:
            loop = asyncio.get_running_loop()
            self._queue_told = loop.call_later(QUEUE_DEBOUNCE_SECONDS, self._tell_of_queue)

    def _tell_of_queue(self) -> None:
        self._queue_told = None
        for watch in self._watches.get(QUEUE_TOPIC, ()):
            watch.wake(None)

    def _everybody(self) -> set[Subscription]:
        return {watch for watches in self._watches.values() for watch in watches}


class Subscription:
    """Somebody who waits; `with` it. `heard_at` is when it last heard something, by the loop's clock."""

    def __init__(self, changes: NotificationListener, topic: str) -> None:
        self.is_closed = False
        self.heard_at = 0.0
        self._changes = changes
        self._topics = {topic}
        self._news: dict[str | None, None] = {}
        self._heard = asyncio.Event()

    def __enter__(self) -> Subscription:
        for topic in self._topics:
            self._changes.add(self, topic)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for topic in self._topics:
            self._changes.remove(self, topic)

    async def wait(self, seconds: float) -> bool:
        """Until there is news, the watch is closed, or time is over. Whether there is news."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        is_heard = self._heard.is_set() and not self.is_closed
        if is_heard:
            self._heard.clear()
        return is_heard

    def take(self) -> list[str | None]:
        """The jobs that have changed since it was last asked, each once; None: any may have."""
        news, self._news = list(self._news), {}
        return news

    def mind_queue(self, is_queued: bool) -> None:
        """Also hear when the queue moved, or not any more."""
        if is_queued and QUEUE_TOPIC not in self._topics:
            self._topics.add(QUEUE_TOPIC)
            self._changes.add(self, QUEUE_TOPIC)
        elif not is_queued and QUEUE_TOPIC in self._topics:
            self._topics.discard(QUEUE_TOPIC)
            self._changes.remove(self, QUEUE_TOPIC)

    def wake(self, job_id: str | None) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        self._news[job_id] = None
        self._heard.set()

    def close(self) -> None:
        """Nobody waits here any more: the client has left, or the server is about to."""
        self.is_closed = True
        self._heard.set()
