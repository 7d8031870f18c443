"""`python -m worker.reconciler`: reaps expired leases, resends hints, schedules the queue, cleans up.

It is its own process and depends on PostgreSQL and storage only, because it replaces messages that the broker lost. Any
number may run; an advisory lock lets one of them work at a time.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from sqlalchemy import text

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.jobs import claims, full_disk, leased_rows, lost_workers
from app.db.jobs.leased_rows import Row
from app.db.operations import clock_step, status
from app.db.scheduling import workers
from app.db.scheduling.fair_queue import Kind
from app.db.tables import BaseModelRegistration, Evaluation, Export
from app.db.webhooks import operator
from app.job_queue import Queue
from app.log import get_logger
from app.system.host import boottime_seconds
from app.telemetry import metrics
from worker.health import write_heartbeat
from worker.node.resources import Resources
from worker.reconciler.cleanup import MIN_ORPHAN_AGE_SECONDS, apply_retention, clean_up, delete_orphans
from worker.reconciler.scheduler import QueueScheduler
from worker.reconciler.service_metrics import ServiceMetrics

ADVISORY_LOCK = 0x7265636F6E63  # "reconc"
MIN_MASS_EXPIRY = 3  # this many expired leases at once, and more than half of all, indicate an outage, not dead workers
MIN_SILENT_SECONDS = 60.0  # without a heartbeat, until a worker counts as lost
DISK_LOW = "disk_low"  # the report of the last announcement
DISK_LOW_SECONDS = 86_400.0
DISK_LOW_MARGIN_PERCENT = 1.0  # so that a disk whose space is about the limit is not announced every minute
CLEANUP_INTERVAL_SECONDS = 60
ORPHAN_INTERVAL_SECONDS = 3600  # long, because it lists every object in storage
KIND_BY_QUEUE: dict[Queue, Kind] = {"cpu": "validate", "gpu": "train"}

log = get_logger(__name__)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # of the host, also in its containers
TOLERANCE_SECONDS = 10.0  # a clock that is slewed, and the time between two readings, differ by less


class MassExpiryGuard:
    """Delays reaping when expired leases indicate an outage, in which no worker could renew, and not dead workers."""

    def __init__(self, ttl_seconds: float, clock: Callable[[], float] = boottime_seconds) -> None:
        self.ttl_seconds = ttl_seconds
        self._clock = clock
        self._reap_at: float | None = None

    def allows(self, expired: int, held: int, server_uptime_seconds: float) -> bool:
        if not expired:
            self._reap_at = None
            return True
        if server_uptime_seconds < self.ttl_seconds:
            return False
        if self._reap_at is not None:
            return self._clock() >= self._reap_at
        if expired >= MIN_MASS_EXPIRY and 2 * expired > held:
            log.error("mass expiry of leases: reaping is delayed by one lease duration", expired=expired, held=held)
            self._reap_at = self._clock() + self.ttl_seconds
            return False
        return True


class Reconciler:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.expiry_guard = MassExpiryGuard(self.settings.lease_ttl_seconds)
        self.scheduler = QueueScheduler(resources)
        self.service_metrics = ServiceMetrics(resources)
        # After a step of PostgreSQL's clock living workers need a renewal to have leases by the new time.
        self.server_clock = StepDetector("PostgreSQL", self.settings.lease_ttl_seconds)
        self.host_clock = StepDetector("host", MIN_ORPHAN_AGE_SECONDS)
        self._cleaned_up_at = -float("inf")
        self._orphans_deleted_at = -float("inf")

    def run(self) -> None:
        """Run rounds until `resources.stop` is set. No error of a round ends the loop."""
        log.info("reconciler started", every_seconds=self.settings.reconcile_seconds)
        if self.settings.metrics_port is not None:
            REGISTRY.register(self.service_metrics)
        while not self.resources.stop.is_set():
            began_at, outcome = time.monotonic(), "failed"
            try:
                write_heartbeat(self.settings, "reconciler")
                outcome = "done" if self.round() else "standby"
                if self.settings.metrics_port is not None:
                    self.service_metrics.read_if_due()
            except DATABASE_UNAVAILABLE as error:
                self.service_metrics.clear()
                log.warning("database unavailable", error=first_line(error))
            except Exception:
                log.exception("round failed")
            metrics.ROUNDS.labels(outcome).inc()
            metrics.ROUND_SECONDS.set(time.monotonic() - began_at)
            self.resources.stop.wait(self.settings.reconcile_seconds)

    def round(self) -> bool:
        """Run one round, unless another reconciler is running one. Returns whether it was run."""
        is_server_clock_steady = self._is_server_clock_steady()  # a standby may be the first one after a step
        with self._leader_lock() as is_leader:
            if is_leader:
                self._report()
                if is_server_clock_steady:
                    self.reap()
                    self.reap_exports()
                    self.reap_evaluations()
                    self.reap_registrations()
                    self.find_lost_workers()
                self.pause_overdue()
                self.send_hints()
                self.scheduler.tick()
                self._clean_up_if_due()
        return is_leader

    def _is_server_clock_steady(self) -> bool:
        """Whether leases may be judged by PostgreSQL's clock; after a step they begin again."""
        ttl_seconds = self.settings.lease_ttl_seconds
        with transaction(self.resources.sessions) as session:
            if (earlier := status.reports(session).get("reconciler")) is not None:
                self.server_clock.continue_from(earlier.data)
            if self.server_clock.has_stepped(lost_workers.server_clock_seconds(session)):
                leased_rows.restart_leases(session, ttl_seconds)
                workers.limit_heartbeats_to_now(session)
                if self.server_clock.step_seconds < 0:
                    clock_step.move_waiting_back(session, -self.server_clock.step_seconds, ttl_seconds)
        return self.server_clock.has_run_for(ttl_seconds)

    def _report(self) -> None:
        """Report for the operator's status that this reconciler works, also while leases may not be judged, and what
        the next one needs to recognize a step while none ran."""
        with transaction(self.resources.sessions) as session:
            status.report(session, "reconciler", self.server_clock.reading())

    def reap(self) -> int:
        """End the attempts whose leases expired longer than the grace period ago. Returns their number."""
        with transaction(self.resources.sessions) as session:
            lost = lost_workers.lock_expired(session, self.settings.reap_grace_seconds)
            held, uptime_seconds = lost_workers.count_held(session), lost_workers.server_uptime_seconds(session)
            if not self.expiry_guard.allows(len(lost), held, uptime_seconds):
                return 0
            for job in lost:
                log.warning("lease reaped", job=job.id, attempt=job.attempt, owner=job.lease_owner)
                lost_workers.reap(session, job, self.settings.requeue_delay_seconds, self.settings.max_crash_streak)
        metrics.LEASES_REAPED.labels("job").inc(len(lost))
        return len(lost)

    def reap_exports(self) -> int:
        """The same for exports; returns their number."""
        return self._reap_rows("export", Export)

    def reap_evaluations(self) -> int:
        """The same for evaluations; returns their number."""
        return self._reap_rows("evaluation", Evaluation)

    def reap_registrations(self) -> int:
        """The same for registrations of base models; returns their number."""
        return self._reap_rows("registration", BaseModelRegistration)

    def _reap_rows(self, kind: str, table: type[Row]) -> int:
        """Do nothing right after PostgreSQL's start, because no worker could renew while it was down."""
        settings = self.settings
        with transaction(self.resources.sessions) as session:
            if lost_workers.server_uptime_seconds(session) < self.expiry_guard.ttl_seconds:
                return 0
            grace_seconds, delay_seconds = settings.reap_grace_seconds, settings.requeue_delay_seconds
            lost = lost_workers.reap_expired(session, table, grace_seconds, delay_seconds, settings.max_crash_streak)
        metrics.LEASES_REAPED.labels(kind).inc(len(lost))
        for row in lost:
            log.warning("lease reaped", **{kind: row.id}, attempt=row.attempt, state=row.state)
        return len(lost)

    def pause_overdue(self) -> None:
        """Pause jobs that have waited for storage for the longest allowed time."""
        with transaction(self.resources.sessions) as session:
            paused = full_disk.pause_overdue(session, self.settings.storage_full_wait_seconds)
        for job in paused:
            log.warning("job paused: the disk has been full for too long", job=job.id)

    def find_lost_workers(self) -> None:
        """Mark workers whose heartbeats have stopped without a shutdown, and announce them to the operator."""
        silent_seconds = max(MIN_SILENT_SECONDS, 3 * self.settings.lease_renew_seconds)
        with transaction(self.resources.sessions) as session:
            lost = workers.mark_lost(session, silent_seconds)
            for worker in lost:
                data = {"worker": worker.id, "queue": worker.queue, "hostname": worker.hostname}
                operator.announce(session, "operator.worker_lost", data)
        for queue in KIND_BY_QUEUE:  # with 0 from the start, because Prometheus's increase() needs it
            metrics.WORKERS_LOST.labels(queue).inc(sum(worker.queue == queue for worker in lost))
        for worker in lost:
            log.warning("worker lost", worker=worker.id, queue=worker.queue)

    def check_disk(self) -> None:
        """Announce to the operator, once a day, that little space is free."""
        try:
            usage = shutil.disk_usage(self.settings.data_dir)
        except OSError as error:
            log.error("the data directory cannot be read", error=str(error))
            return
        free_percent = 100 * usage.free / usage.total
        with transaction(self.resources.sessions) as session:
            if free_percent >= self.settings.low_disk_percent + DISK_LOW_MARGIN_PERCENT:
                status.forget(session, DISK_LOW)
            if free_percent >= self.settings.low_disk_percent:
                return
            announced = status.reports(session).get(DISK_LOW)
            if announced is None or announced.age_seconds >= DISK_LOW_SECONDS:
                data = {"directory": str(self.settings.data_dir), "free_bytes": usage.free, "disk_bytes": usage.total}
                status.report(session, DISK_LOW, data)
                operator.announce(session, "operator.disk_low", data)
                log.warning("little disk space is free", free_bytes=usage.free, disk_bytes=usage.total)

    def send_hints(self) -> None:
        """Send hints for due work while a worker is free: a hint was lost, or a delay is over. Busy workers need
        none."""
        with transaction(self.resources.sessions) as session:
            busy = {worker.id for worker in workers.busy(session)}
            free = {worker.queue for worker in workers.alive(session) if worker.id not in busy}
            hinted = [
                queue
                for queue, kind in KIND_BY_QUEUE.items()
                if queue in free and claims.has_claimable_job(session, kind)
            ]
            if "gpu" in free and "gpu" not in hinted and leased_rows.has_claimable(session, Evaluation):
                hinted.append("gpu")
            if leased_rows.has_claimable(session, Export):
                # any worker that has torch runs exports; busy workers poll by themselves
                hinted = [queue for queue in KIND_BY_QUEUE if queue in free]
        for queue in hinted:
            self.resources.hints.send(queue)

    def _clean_up_if_due(self) -> None:
        """The ages of files are differences of the host's clock, those of rows of PostgreSQL's: after a step of one,
        nothing is deleted by them for a day."""
        are_file_ages_known = self.host_clock.is_steady(time.time())
        are_row_ages_known = self.server_clock.has_run_for(MIN_ORPHAN_AGE_SECONDS)
        if time.monotonic() - self._cleaned_up_at >= CLEANUP_INTERVAL_SECONDS:
            self._cleaned_up_at = time.monotonic()
            self.check_disk()
            clean_up(self.resources, are_file_ages_known, are_row_ages_known)
        if time.monotonic() - self._orphans_deleted_at >= ORPHAN_INTERVAL_SECONDS:
            self._orphans_deleted_at = time.monotonic()
            if are_row_ages_known:
                apply_retention(self.resources)
            if are_file_ages_known:
                delete_orphans(self.resources)

    @contextlib.contextmanager
    def _leader_lock(self) -> Iterator[bool]:
        """Hold the advisory lock for one round; yields whether it was acquired. A broken connection releases the
        lock."""
        with self.resources.engine.connect() as connection:
            is_leader = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}))
            connection.commit()
            try:
                yield is_leader
            finally:
                if is_leader:
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
                    connection.commit()


class StepDetector:
    """Compares a clock with the time since boot, which is never set. After a step the ages that the clock gives are
    wrong for as long as what they limit: `quiet_seconds`."""

    def __init__(self, name: str, quiet_seconds: float, boottime: Callable[[], float] = boottime_seconds) -> None:
        self._name = name
        self._quiet_seconds = quiet_seconds
        self._boottime = boottime
        self._offset_seconds: float | None = None
        self._stepped_at = -float("inf")
        self.step_seconds = 0.0  # of the last step that this process has detected; negative: the clock was set back

    def is_steady(self, clock_seconds: float) -> bool:
        """Whether the clock, which says `clock_seconds`, was not set since the first call or for `quiet_seconds`."""
        self.has_stepped(clock_seconds)
        return self.has_run_for(self._quiet_seconds)

    def has_stepped(self, clock_seconds: float) -> bool:
        """Whether the clock, which says `clock_seconds`, was set since the call before."""
        now = self._boottime()
        earlier, self._offset_seconds = self._offset_seconds, clock_seconds - now
        if earlier is None or abs(step_seconds := self._offset_seconds - earlier) <= TOLERANCE_SECONDS:
            return False
        log.error("the clock was set", clock=self._name, step_seconds=round(step_seconds))
        self._stepped_at, self.step_seconds = now, step_seconds
        return True

    def has_run_for(self, seconds: float) -> bool:
        """Whether the last step that `is_steady` has detected is as long ago."""
        return self._boottime() - self._stepped_at >= seconds

    def reading(self) -> dict[str, Any]:
        """What a later process on this host needs to recognize a step, as JSON."""
        stepped_at = None if self._stepped_at == -float("inf") else self._stepped_at
        return {"boot": _boot_id(), "offset_seconds": self._offset_seconds, "stepped_at": stepped_at}

    def continue_from(self, reading: Mapping[str, Any]) -> None:
        """Use the reading of an earlier process, unless this one has its own, or the host was booted since."""
        boot_id = reading.get("boot")
        if self._offset_seconds is not None or boot_id is None or boot_id != _boot_id():
            return
        self._offset_seconds = reading["offset_seconds"]
        if reading["stepped_at"] is not None:
            self._stepped_at = reading["stepped_at"]


def _boot_id() -> str | None:
    """None on a system without boot ids, where each process begins with the time that it finds."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
