"""`python -m worker.reconciler`: finds jobs whose holder is gone, sends hints again, keeps the queue, cleans up.

Its own process, on PostgreSQL and storage alone: what repairs a lost message must not hang on the broker. Any number
may run; an advisory lock lets one of them work at a time.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from sqlalchemy import text

from app.db.engine import transaction
from app.db.jobs import claims, expired_leases, exports, full_disk
from app.db.scheduling import workers
from app.db.scheduling.fair_queue import Kind
from app.job_queue import Queue
from app.log import configure_logging, get_logger
from app.settings import load_settings
from worker.health import beat
from worker.jobs.lease import DATABASE_AWAY, boottime_seconds
from worker.node.resources import Resources, open_resources
from worker.reconciler.cleanup import delete_orphans, sweep
from worker.reconciler.scheduler import QueueKeeper

ADVISORY_LOCK = 0x7265636F6E63  # "reconc"
MASS_EXPIRY = 3  # so many leases at once, and more than half of all, are an outage and not so many deaths
SWEEP_SECONDS = 60
ORPHANS_SECONDS = 3600  # it looks at every object in storage
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
WORK: dict[Queue, Kind] = {"cpu": "validate", "gpu": "train"}

log = get_logger(__name__)


class Brake:
    """Whether leases that have run out mean that their holders are dead, or that nobody could renew."""

    def __init__(self, ttl_seconds: float, clock: Callable[[], float] = boottime_seconds) -> None:
        self.ttl_seconds = ttl_seconds
        self._clock = clock
        self._released_at: float | None = None

    def allows(self, expired: int, held: int, server_uptime_seconds: float) -> bool:
        if not expired:
            self._released_at = None
            return True
        if server_uptime_seconds < self.ttl_seconds:
            return False
        if self._released_at is not None:
            return self._clock() >= self._released_at
        if expired >= MASS_EXPIRY and 2 * expired > held:
            log.error("mass expiry of leases: waiting one lease before reaping", expired=expired, held=held)
            self._released_at = self._clock() + self.ttl_seconds
            return False
        return True


class Reconciler:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.brake = Brake(self.settings.lease_ttl_seconds)
        self.queue = QueueKeeper(resources)
        self._swept_at = -float("inf")
        self._orphans_at = -float("inf")

    def run(self) -> None:
        """Until `resources.stop` is set. Nothing that goes wrong in a round ends it."""
        while not self.resources.stop.is_set():
            try:
                beat(self.settings, "reconciler")
                self.round()
            except DATABASE_AWAY as error:
                log.warning("database away", error=str(error).split("\n", 1)[0])
            except Exception:
                log.exception("round failed")
            self.resources.stop.wait(self.settings.reconcile_seconds)

    def round(self) -> bool:
        """One round, unless another reconciler is at it. True if it was done."""
        with self._lead() as is_leader:
            if is_leader:
                self.reap()
                self.reap_exports()
                self.pause_overdue()
                self.send_hints()
                self.queue.look()
                self._sweep_sometimes()
        return is_leader

    def reap(self) -> int:
        """End the attempts of holders that have not renewed for a lease and the grace on top; how many."""
        with transaction(self.resources.sessions) as session:
            lost = expired_leases.lock_expired(session, self.settings.reap_grace_seconds)
            held, uptime_seconds = expired_leases.count_held(session), expired_leases.server_uptime_seconds(session)
            if not self.brake.allows(len(lost), held, uptime_seconds):
                return 0
            for job in lost:
                log.warning("lease reaped", job=job.id, attempt=job.attempt, owner=job.lease_owner)
                expired_leases.reap(session, job, self.settings.requeue_delay_seconds, self.settings.max_crash_streak)
        return len(lost)

    def reap_exports(self) -> int:
        """The same for exports; how many. Not right after PostgreSQL's start: nobody could renew while it was down."""
        settings = self.settings
        with transaction(self.resources.sessions) as session:
            if expired_leases.server_uptime_seconds(session) < self.brake.ttl_seconds:
                return 0
            lost = exports.reap_expired(
                session, settings.reap_grace_seconds, settings.requeue_delay_seconds, settings.max_crash_streak
            )
        for export in lost:
            log.warning("lease of an export reaped", export=export.id, attempt=export.attempt, state=export.state)
        return len(lost)

    def pause_overdue(self) -> None:
        """Jobs that have waited for storage for as long as they may."""
        with transaction(self.resources.sessions) as session:
            paused = full_disk.pause_overdue(session, self.settings.storage_full_wait_seconds)
        for job in paused:
            log.warning("paused: the disk has been full for too long", job=job.id)

    def send_hints(self) -> None:
        """For work that waits while a worker is free: a hint was lost, or a delay is over. Busy workers need none."""
        with transaction(self.resources.sessions) as session:
            busy = {worker.id for worker in workers.busy(session)}
            free = {worker.queue for worker in workers.alive(session) if worker.id not in busy}
            wanted = [
                queue for queue, kind in WORK.items() if queue in free and claims.has_claimable_job(session, kind)
            ]
            if exports.has_claimable_export(
                session
            ):  # any worker that has torch; those that are busy poll by themselves
                wanted = [queue for queue in WORK if queue in free]
        for queue in wanted:
            self.resources.hints.send(queue)

    def _sweep_sometimes(self) -> None:
        if time.monotonic() - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            sweep(self.resources)
        if time.monotonic() - self._orphans_at >= ORPHANS_SECONDS:
            self._orphans_at = time.monotonic()
            delete_orphans(self.resources)

    @contextlib.contextmanager
    def _lead(self) -> Iterator[bool]:
        """Hold the advisory lock for one round. It belongs to the connection: when that breaks, the lock is free."""
        with self.resources.engine.connect() as connection:
            is_leader = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}))
            connection.commit()
            try:
                yield is_leader
            finally:
                if is_leader:
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
                    connection.commit()


def main() -> None:
    settings = load_settings()
    configure_logging(settings.log_json, settings.log_file)
    resources = open_resources(settings)
    # Waited for, not handled: a handler that sets an Event its own thread is waiting on can deadlock.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    thread = threading.Thread(target=Reconciler(resources).run, name="reconciler")
    thread.start()
    log.info("reconciler started", every_seconds=settings.reconcile_seconds)
    signal.sigwait(STOP_SIGNALS)
    resources.stop.set()
    thread.join()
    resources.close()
