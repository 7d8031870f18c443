"""A slot of a worker: a name, a lock, and one thread that runs one job at a time.

A hint and the slot's own poll both only wake that thread, so a duplicate hint has no effect. The thread lives as long
as the worker, which a trainer's parent-death signal requires.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.jobs import leases, lost_workers
from app.job_queue import Queue
from app.log import get_logger
from worker.jobs.lease import owner_name
from worker.node.resources import Resources, errors_logged

RunNext = Callable[[], bool]  # runs one job to its end; returns False if no job is due

LOCK_RETRY_SECONDS = 0.5

log = get_logger(__name__)


class Slot:
    """`name` is stable over restarts ("gpu0@host"); `owner` identifies this incarnation of the slot."""

    def __init__(self, resources: Resources, queue: Queue, name: str, make_runner: Callable[[str], RunNext]) -> None:
        self.resources = resources
        self.queue: Queue = queue
        self.name = name
        self.owner = owner_name(name)
        self._run_next = make_runner(self.owner)
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def run_until_idle(self) -> None:
        """Wake the slot and return when it is idle again, so that further hints go to idle workers meanwhile."""
        self._idle.clear()
        self._wake.set()
        while not self._idle.wait(timeout=1) and self._thread.is_alive():
            pass

    def wake(self) -> None:
        """Wake the slot's thread. Safe in a signal handler, because it only sets an event."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end of the slot's thread after `resources.stop` was set. Returns whether it has ended."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Run jobs while holding the slot's lock; wait for it while another process (one that drains) holds it."""
        path = self.resources.settings.data_dir / "run" / f"{self.name}.lock"
        while not self.resources.stop.is_set():
            with try_lock(path) as lock:
                if lock is not None:
                    self._reap_previous_incarnations()
                    self._job_loop()
                else:
                    log.info("another process holds the lock of this slot", slot=self.name)
                    self.resources.stop.wait(LOCK_RETRY_SECONDS)
        self._idle.set()

    def _job_loop(self) -> None:
        while not self.resources.stop.is_set():
            self._wake.clear()
            self._run_due_jobs()
            self._idle.set()
            # The delay after a lost hint, with jitter, so that the workers of a restarted host do not poll all at once.
            self._wake.wait(self.resources.settings.poll_seconds * random.uniform(0.8, 1.2))

    def _run_due_jobs(self) -> None:
        """Run jobs until none is due. No error ends the slot."""
        with errors_logged(f"slot {self.name}"):
            while not self.resources.stop.is_set() and self._run_next():
                pass

    def _reap_previous_incarnations(self) -> None:
        """End the attempts that earlier incarnations of this slot hold, without waiting for their leases to expire.

        This process holds the slot's lock, so the earlier ones are dead. A bug ends the slot's thread and thereby its
        heartbeat: a slot that repeated it for ever would look healthy.
        """
        while not self.resources.stop.is_set():
            try:
                with transaction(self.resources.sessions) as session:
                    for row in leases.lock_all(session, slot=self.name, owner=self.owner):
                        log.warning("reaping an attempt of a previous incarnation", id=row.id, owner=row.lease_owner)
                        lost_workers.end_attempt(session, row, self.resources.retries)
                return
            except DATABASE_UNAVAILABLE as error:
                log.warning("database unavailable", slot=self.name, error=first_line(error))
                self.resources.stop.wait(self.resources.settings.poll_seconds)


@contextmanager
def try_lock(path: Path) -> Iterator[int | None]:
    """Hold the lock while the block lasts; yields its descriptor, or None if another process holds the lock.

    A child that inherits the descriptor keeps holding the lock, even after this process has exited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except BlockingIOError:
            is_held = False
        yield descriptor if is_held else None
    finally:
        os.close(descriptor)
