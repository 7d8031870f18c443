"""`python -m worker.reconciler`: reaps expired leases, resends hints, schedules the queue, cleans up.

It is its own process and depends on PostgreSQL and storage only, because it replaces messages that the broker lost. Any
number may run; an advisory lock lets one of them work at a time.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import REGISTRY
from sqlalchemy import text

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.jobs import claims, leases, lost_workers
from app.db.jobs.leases import HeldLease
from app.db.operations import status
from app.db.scheduling import workers
from app.db.scheduling.fair_queue import Kind
from app.db.tables import BaseModelRegistration, Delivery, Evaluation, Export, Job, WebhookDelivery
from app.db.tables.base import Leased
from app.db.webhooks import operator
from app.job_queue import Queue
from app.log import get_logger
from app.settings import Settings
from app.telemetry import metrics
from worker.health import write_heartbeat
from worker.node.resources import Resources
from worker.reconciler.cleanup import apply_retention, clean_up, delete_orphans
from worker.reconciler.scheduler import QueueScheduler
from worker.reconciler.service_metrics import ServiceMetrics

ADVISORY_LOCK = 0x7265636F6E63  # "reconc"
MIN_SILENT_SECONDS = 60.0  # without a heartbeat, until a worker counts as lost
DISK_LOW = "disk_low"  # the report of the last announcement
DISK_LOW_SECONDS = 86_400.0
DISK_LOW_MARGIN_PERCENT = 1.0  # so that a disk whose space is about the limit is not announced every minute
CLEANUP_INTERVAL_SECONDS = 60
ORPHAN_INTERVAL_SECONDS = 3600  # long, because it lists every object in storage
KINDS: Mapping[type[Leased], str] = {
    Job: "job",
    Export: "export",
    Evaluation: "evaluation",
    BaseModelRegistration: "registration",
    Delivery: "delivery",
    WebhookDelivery: "webhook",
}
KIND_BY_QUEUE: dict[Queue, Kind] = {"cpu": "validate", "gpu": "train"}

log = get_logger(__name__)


class Reconciler:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.expiries = ExpiryObserver(self.settings)
        metrics.begin(metrics.LEASES_REAPED, KINDS.values())
        self.scheduler = QueueScheduler(resources)
        self.service_metrics = ServiceMetrics(resources)
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
        with self._leader_lock() as is_leader:
            if is_leader:
                with transaction(self.resources.sessions) as session:
                    status.report(session, "reconciler")
                self.reap()
                self.find_lost_workers()
                self.send_hints()
                self.scheduler.tick()
                self._clean_up_if_due()
        return is_leader

    def reap(self) -> int:
        """End the attempts of every kind of work whose leases are lost. Returns their number."""
        with transaction(self.resources.sessions) as session:
            found = leases.held(session)
        count = 0
        for lost in self.expiries.lost(found):
            with transaction(self.resources.sessions) as session:
                row = leases.lock_unrenewed(session, lost)
                if row is None:
                    continue
                lost_workers.end_attempt(session, row, self.resources.retries)
            count += 1
            kind = KINDS[lost.table]
            metrics.LEASES_REAPED.labels(kind).inc()
            log.warning("lease reaped", **{kind: row.id}, attempt=row.attempt, owner=lost.lease.owner)
        return count

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
            living = workers.alive(session)
            free = {each.queue for each in living if each.id not in busy and each.out_of_service_at is None}
            hinted = [
                queue
                for queue, kind in KIND_BY_QUEUE.items()
                if queue in free and claims.has_claimable_job(session, kind)
            ]
            if "gpu" in free and "gpu" not in hinted and leases.has_claimable(session, Evaluation):
                hinted.append("gpu")
            if leases.has_claimable(session, Export):
                # any worker that has torch runs exports; busy workers poll by themselves
                hinted = [queue for queue in KIND_BY_QUEUE if queue in free]
        for queue in hinted:
            self.resources.hints.send(queue)

    def _clean_up_if_due(self) -> None:
        if time.monotonic() - self._cleaned_up_at >= CLEANUP_INTERVAL_SECONDS:
            self._cleaned_up_at = time.monotonic()
            self.check_disk()
            clean_up(self.resources)
        if time.monotonic() - self._orphans_deleted_at >= ORPHAN_INTERVAL_SECONDS:
            self._orphans_deleted_at = time.monotonic()
            apply_retention(self.resources)
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


class ExpiryObserver:
    """Finds lost leases by their renewals, timed by this process's own clock, which is never set.

    A holder that lives renews in time. So a step of PostgreSQL's clock, which expires all leases or none, ends no
    attempt, nor does an outage of PostgreSQL, in which no holder can renew.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._seen_at: dict[HeldLease, float] = {}

    def lost(self, held: Sequence[HeldLease]) -> list[HeldLease]:
        """Those that were not renewed for the grace period after they had expired, or for a lease longer."""
        now = self._clock()
        self._seen_at = {each: self._seen_at.get(each, now) for each in held}
        grace_seconds, ttl_seconds = self._settings.reap_grace_seconds, self._settings.lease_ttl_seconds
        return [
            each
            for each, seen_at in self._seen_at.items()
            if now - seen_at >= grace_seconds + (0 if each.is_expired else ttl_seconds)
        ]
