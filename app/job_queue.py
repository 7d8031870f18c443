"""The producer's side of Celery: task names, and hints that leave after commit.

A hint says "look for work" and carries nothing. It may be lost, doubled or late: PostgreSQL is the queue, workers poll
too, and the reconciler sends hints again.
"""

from __future__ import annotations

import threading
import time
from typing import Literal

from celery import Celery
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.log import get_logger

Queue = Literal["cpu", "gpu"]
LOOK_FOR_WORK: dict[Queue, str] = {"cpu": "tunery.validate", "gpu": "tunery.train"}
HINT_INTERVAL_SECONDS = 0.05  # between two of a burst
MAX_PENDING_HINTS = 20  # of a burst: workers that are not woken within a second look for themselves
HINT_EXPIRES_SECONDS = 300  # hints must not pile up while every slot is busy
SOCKET_TIMEOUT_SECONDS = 2

log = get_logger(__name__)


class WorkerNotifier:
    """Sends hints to workers. A broker that is down costs a log line, never a request."""

    def __init__(self, redis_url: str) -> None:
        self.celery = make_celery(redis_url)
        self._lanes = {queue: _ThrottledSender(self, queue) for queue in LOOK_FOR_WORK}

    def after_commit(self, session: Session, queue: Queue) -> None:
        """Send a hint once `session` has committed; a rollback sends nothing."""
        event.listen(session, "after_commit", lambda _session: self.send_in_background(queue), once=True)

    def send_in_background(self, queue: Queue) -> None:
        """From a thread: with the broker down, connecting takes seconds that no request should wait."""
        self._lanes[queue].add()

    def send(self, queue: Queue) -> bool:
        try:
            self.celery.send_task(LOOK_FOR_WORK[queue], queue=queue, expires=HINT_EXPIRES_SECONDS, retry=False)
        except Exception as error:  # every transport raises its own; none of them may cost more than the hint
            log.warning("hint not sent", queue=queue, error=str(error))
            return False
        return True

    def can_connect(self) -> bool:
        """For a readiness report; jobs are accepted either way."""
        try:
            with self.celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=SOCKET_TIMEOUT_SECONDS)
        except Exception as error:
            log.warning("broker not reachable", error=str(error))
            return False
        return True

    def close(self) -> None:
        self.celery.close()


class _ThrottledSender:
    """Hints on their way to one queue, one after the other, by a thread that ends with the last of them.

    A worker that was woken works until nothing waits any more. So a burst of jobs needs a hint for each idle worker
    and not for each job, which would take a tenth of what it costs to create one.
    """

    def __init__(self, hints: WorkerNotifier, queue: Queue) -> None:
        self._hints = hints
        self._queue: Queue = queue
        self._lock = threading.Lock()
        self._waiting = 0
        self._is_moving = False

    def add(self) -> None:
        with self._lock:
            self._waiting = min(self._waiting + 1, MAX_PENDING_HINTS)
            if self._is_moving:
                return
            self._is_moving = True
        threading.Thread(target=self._move, daemon=True).start()

    def _move(self) -> None:
        while self._take():
            self._hints.send(self._queue)
            time.sleep(HINT_INTERVAL_SECONDS)

    def _take(self) -> bool:
        with self._lock:
            self._is_moving = self._waiting > 0
            self._waiting -= self._is_moving
            return self._is_moving


def make_celery(redis_url: str) -> Celery:
    """One configuration for the side that sends and the side that works; every line has a failure behind it.

    Early acknowledgement and no result backend: a late-acknowledged message is delivered again after the visibility
    timeout, one hour, while its task still runs. `ack_emulation` off makes Redis a plain BRPOP: nothing to redeliver.
    Prefetch is disabled: a reserved message would wait behind a day of training while other workers idle.
    """
    celery = Celery("tunery", broker=redis_url)
    celery.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        task_publish_retry=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "ack_emulation": False,
            "health_check_interval": 25,
            "socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_timeout": None,
            "global_keyprefix": "tunery:",
        },
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_soft_shutdown_timeout=30,
    )
    return celery
