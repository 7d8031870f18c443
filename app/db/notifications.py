"""LISTEN/NOTIFY: one connection of a process distributes notifications of job changes to all its subscriptions.

A notification only wakes a subscriber, which then reads the rows. After every (re)connect all subscriptions are woken,
so a broken connection loses no change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from types import TracebackType

import psycopg
from sqlalchemy import Engine

from app.db.fast_reads.pool import connect_arguments
from app.log import get_logger

CHANNEL = "tunery_jobs"  # payload: "project job event_seq", plus " queue" if the change moves other jobs in the queue
QUEUE_TOPIC = "queue"  # for subscribers whose response contains a queue position
QUEUE_CHANGED = f"- - 0 {QUEUE_TOPIC}"  # payload without project and job: the forecast was written again
QUEUE_DEBOUNCE_SECONDS = 1.0  # one finished job moves all queued ones: a burst of changes is delivered once
RECONNECT_SECONDS = 1.0

log = get_logger(__name__)


class NotificationListener:
    """Connects at the first subscription. Belongs to one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._arguments = connect_arguments(engine)
        self._by_topic: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._queue_timer: asyncio.TimerHandle | None = None
        self._is_closing = False

    @property
    def subscription_count(self) -> int:
        return len(self._subscriptions())

    def subscribe(self, topic: str) -> Subscription:
        """Subscribe to changes of a job or of a project's jobs, from now on; `topic` is the id."""
        subscription = Subscription(self, topic)
        if self._is_closing:
            subscription.close()
        elif self._task is None:
            self._task = asyncio.create_task(self._listen(), name="listen")
        return subscription

    def close_subscriptions(self) -> None:
        """End every wait, and every later one at once: the process is about to stop."""
        self._is_closing = True
        for subscription in self._subscriptions():
            subscription.close()

    async def close(self) -> None:
        self.close_subscriptions()
        if self._queue_timer is not None:
            self._queue_timer.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._task, self._queue_timer, self._is_closing = None, None, False

    def add(self, subscription: Subscription, topic: str) -> None:
        self._by_topic[topic].add(subscription)

    def remove(self, subscription: Subscription, topic: str) -> None:
        self._by_topic[topic].discard(subscription)
        if not self._by_topic[topic]:
            del self._by_topic[topic]

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    for subscription in self._subscriptions():
                        subscription.notify(None)
                    async for notification in connection.notifies():
                        self._dispatch(notification.payload)
            except (psycopg.Error, OSError) as error:
                log.warning("notification listener disconnected", error=str(error).split("\n", 1)[0])
            await asyncio.sleep(RECONNECT_SECONDS)

    def _dispatch(self, payload: str) -> None:
        project_id, job_id, *more = payload.split(" ")
        for topic in (job_id, project_id):
            for subscription in self._by_topic.get(topic, ()):
                subscription.notify(job_id)
        if QUEUE_TOPIC in more and self._queue_timer is None and QUEUE_TOPIC in self._by_topic:
            loop = asyncio.get_running_loop()
            self._queue_timer = loop.call_later(QUEUE_DEBOUNCE_SECONDS, self._dispatch_queue_change)

    def _dispatch_queue_change(self) -> None:
        self._queue_timer = None
        for subscription in self._by_topic.get(QUEUE_TOPIC, ()):
            subscription.notify(None)

    def _subscriptions(self) -> set[Subscription]:
        return {subscription for subscriptions in self._by_topic.values() for subscription in subscriptions}


class Subscription:
    """A context manager that receives notifications while it is open.

    `notified_at` is the time of the last notification, by the event loop's clock.
    """

    def __init__(self, listener: NotificationListener, topic: str) -> None:
        self.is_closed = False
        self.notified_at = 0.0
        self._listener = listener
        self._topics = {topic}
        self._changed_jobs: dict[str | None, None] = {}
        self._is_notified = asyncio.Event()

    def __enter__(self) -> Subscription:
        for topic in self._topics:
            self._listener.add(self, topic)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for topic in self._topics:
            self._listener.remove(self, topic)

    async def wait(self, seconds: float) -> bool:
        """Wait for a notification, the close of the subscription or the timeout. Whether there was a notification."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_notified.wait()
        is_notified = self._is_notified.is_set() and not self.is_closed
        if is_notified:
            self._is_notified.clear()
        return is_notified

    def take_changed_jobs(self) -> list[str | None]:
        """The ids of jobs that have changed since the last call, each once; None: any job may have changed."""
        changed_jobs, self._changed_jobs = list(self._changed_jobs), {}
        return changed_jobs

    def include_queue(self, is_queued: bool) -> None:
        """Receive notifications of moves in the queue, too, as long as the job is queued."""
        if is_queued and QUEUE_TOPIC not in self._topics:
            self._topics.add(QUEUE_TOPIC)
            self._listener.add(self, QUEUE_TOPIC)
        elif not is_queued and QUEUE_TOPIC in self._topics:
            self._topics.discard(QUEUE_TOPIC)
            self._listener.remove(self, QUEUE_TOPIC)

    def notify(self, job_id: str | None) -> None:
        self.notified_at = asyncio.get_running_loop().time()
        self._changed_jobs[job_id] = None
        self._is_notified.set()

    def close(self) -> None:
        """End the wait for good: the client has disconnected, or the server is about to stop."""
        self.is_closed = True
        self._is_notified.set()
