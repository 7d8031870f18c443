"""The producer's side of Celery: task names, and hints to workers that are sent after a commit.

A hint is a message without content that wakes an idle worker. It may be lost, duplicated or late: PostgreSQL is the
queue, workers also poll, and the reconciler sends hints again.
"""

from __future__ import annotations

import threading
import time
from typing import Literal

from celery import Celery
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.log import get_logger
from app.telemetry import metrics

Queue = Literal["cpu", "gpu"]
LOOK_FOR_WORK: dict[Queue, str] = {"cpu": "tunery.validate", "gpu": "tunery.train"}
HINT_INTERVAL_SECONDS = 0.05  # between two hints of a burst
MAX_PENDING_HINTS = 20  # per queue; workers that get no hint find the jobs when they poll
HINT_EXPIRES_SECONDS = 300  # hints must not accumulate while all workers are busy
SOCKET_TIMEOUT_SECONDS = 2

log = get_logger(__name__)


class WorkerNotifier:
    """Sends hints to workers. An unreachable broker causes a warning in the log, never a failed request."""

    def __init__(self, redis_url: str) -> None:
        self.celery = make_celery(redis_url)
        self._senders = {queue: _ThrottledSender(self, queue) for queue in LOOK_FOR_WORK}
        metrics.begin(metrics.HINTS_SENT, LOOK_FOR_WORK, ["sent", "failed"])

    def after_commit(self, session: Session, queue: Queue) -> None:
        """Send a hint once `session` has committed; a rollback sends nothing."""
        event.listen(session, "after_commit", lambda _session: self.send_in_background(queue), once=True)

    def send_in_background(self, queue: Queue) -> None:
        """Send a hint from a thread, as connecting to an unreachable broker takes seconds."""
        self._senders[queue].add()

    def send(self, queue: Queue) -> bool:
        """Send a hint now; False if the broker is unreachable."""
        try:
            self.celery.send_task(LOOK_FOR_WORK[queue], queue=queue, expires=HINT_EXPIRES_SECONDS, retry=False)
        except Exception as error:  # each transport raises its own exceptions; a lost hint is harmless
            log.warning("hint not sent", queue=queue, error=str(error))
            metrics.HINTS_SENT.labels(queue, "failed").inc()
            return False
        metrics.HINTS_SENT.labels(queue, "sent").inc()
        return True

    def can_connect(self) -> bool:
        """Whether the broker is reachable, for the readiness report; jobs are accepted either way."""
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
    """Sends the pending hints of one queue, one after the other, in a thread that ends after the last one.

    A woken worker works until no job is claimable. So a burst of jobs needs one hint per idle worker, not one per job,
    which would take a tenth of the cost of creating a job.
    """

    def __init__(self, notifier: WorkerNotifier, queue: Queue) -> None:
        self._notifier = notifier
        self._queue: Queue = queue
        self._lock = threading.Lock()
        self._pending = 0
        self._is_running = False

    def add(self) -> None:
        with self._lock:
            self._pending = min(self._pending + 1, MAX_PENDING_HINTS)
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._send_pending, daemon=True).start()

    def _send_pending(self) -> None:
        while self._take_one():
            self._notifier.send(self._queue)
            time.sleep(HINT_INTERVAL_SECONDS)

    def _take_one(self) -> bool:
        with self._lock:
            self._is_running = self._pending > 0
            self._pending -= self._is_running
            return self._is_running


def make_celery(redis_url: str) -> Celery:
    """The Celery app of producers and workers; each setting avoids a known failure.

    Messages are acknowledged early, without a result backend: Celery delivers a late-acknowledged message again after
    the visibility timeout (one hour) while its task still runs. With `ack_emulation` off, Redis is read by a plain
    BRPOP, so there is nothing to redeliver. Prefetch is disabled, as a reserved message would wait behind a day of
    training while other workers are idle.
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
