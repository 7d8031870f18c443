"""A slot: one place to work at, with a name, a lock, and the one thread that takes its jobs.

A hint and the slot's own poll both only wake that thread, so a duplicate is a no-op; and the thread lives as long as
the worker, which a trainer's parent-death signal needs.
"""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Callable

from app.db.engine import transaction
from app.db.jobs import expired_leases, exports
from app.job_queue import Queue
from app.log import get_logger
from worker.jobs.lease import DATABASE_AWAY
from worker.node.locks import try_lock
from worker.node.resources import Resources

TakeOne = Callable[[], bool]  # see one job through; False when there is nothing to do

LOCK_RETRY_SECONDS = 0.5

log = get_logger(__name__)


class Slot:
    """`name` is stable over restarts ("gpu0@host"); `owner` is this incarnation of it."""

    def __init__(self, resources: Resources, queue: Queue, name: str, make_taker: Callable[[str], TakeOne]) -> None:
        self.resources = resources
        self.queue: Queue = queue
        self.name = name
        self.owner = f"{name}#{secrets.token_hex(4)}"
        self._take_one = make_taker(self.owner)
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def look_for_work(self) -> None:
        """What a hint asks for. Returns when the slot is idle again: meanwhile further hints stay for idle workers."""
        self._idle.clear()
        self._wake.set()
        while not self._idle.wait(timeout=1) and self._thread.is_alive():
            pass

    def wake(self) -> None:
        """Also from a signal handler: an event is set, nothing else."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end of the slot's thread, which `resources.stop` has asked for."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        """Behind the slot's lock; while another process has it (an older one that drains), wait for it."""
        path = self.resources.settings.data_dir / "run" / f"{self.name}.lock"
        while not self.resources.stop.is_set():
            with try_lock(path) as lock:
                if lock is not None:
                    self._reap_predecessors()
                    self._serve()
                else:
                    log.info("another worker has this slot", slot=self.name)
                    self.resources.stop.wait(LOCK_RETRY_SECONDS)
        self._idle.set()

    def _serve(self) -> None:
        while not self.resources.stop.is_set():
            self._wake.clear()
            self._take_all()
            self._idle.set()
            self._wake.wait(self._poll_seconds())

    def _take_all(self) -> None:
        """Until nothing waits. PostgreSQL may be away; a mistake of ours may cost a job's attempt, never the slot."""
        try:
            while not self.resources.stop.is_set() and self._take_one():
                pass
        except DATABASE_AWAY as error:
            log.warning("database away", slot=self.name, error=str(error).split("\n", 1)[0])
        except Exception:
            log.exception("slot failed", slot=self.name)

    def _poll_seconds(self) -> float:
        """A lost hint costs this much; with jitter, or all workers of a restarted host would ask at once."""
        return self.resources.settings.poll_seconds * random.uniform(0.8, 1.2)

    def _reap_predecessors(self) -> None:
        """We have the slot's lock, so whoever held jobs under this name before is dead: don't wait for their leases."""
        settings = self.resources.settings
        while not self.resources.stop.is_set():
            try:
                with transaction(self.resources.sessions) as session:
                    for job in expired_leases.held_by_previous_incarnation(session, self.name, self.owner):
                        log.warning("reaping the predecessor's job", job=job.id, owner=job.lease_owner)
                        expired_leases.reap(session, job, settings.requeue_delay_seconds, settings.max_crash_streak)
                    exports.reap_previous_incarnation(
                        session, self.name, self.owner, settings.requeue_delay_seconds, settings.max_crash_streak
                    )
                return
            except DATABASE_AWAY as error:
                log.warning("database away", slot=self.name, error=str(error).split("\n", 1)[0])
                self.resources.stop.wait(settings.poll_seconds)
