"""Metrics of the whole service, read from PostgreSQL. Every reconciler exposes them, also one that is not the leader.

They are read by the reconciler's own loop and not by a scrape, so scrapers cause no queries.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.operations import status
from app.db.scheduling import workers
from app.domain.jobs.states import JobState
from worker.node.resources import Resources

READ_SECONDS = 15.0
READ_STORAGE_SECONDS = 60.0  # the sum over all files
WORKER_QUEUES = ("cpu", "gpu")


@dataclass(frozen=True)
class ServiceGauges:
    jobs: dict[str, int]
    oldest: Sequence[Any]  # rows of `status.oldest_waiting`
    exports: int
    held_leases: int
    expired_leases: int
    workers: dict[tuple[str, bool], int]  # (queue, is busy) -> living workers
    snapshot_age_seconds: float
    crash_streak: int
    backlog: Any  # the row of `status.webhook_backlog`
    deliveries: dict[str, int]  # unfinished ones by state
    delivery_backlog: Any
    read_at: float


class ServiceMetrics(Collector):
    """A collector with the values of the last read. While the database is unavailable, `tunery_database_up` is 0 and
    the values that come from it are absent."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._gauges: ServiceGauges | None = None
        self._storage: Sequence[Any] = []
        self._read_at = self._storage_read_at = -float("inf")

    def read_if_due(self) -> None:
        """Read the values anew if they are old. Raises DATABASE_UNAVAILABLE."""
        now = time.monotonic()
        if now - self._read_at < READ_SECONDS:
            return
        self._read_at = now
        with transaction(self._resources.sessions) as session:
            if now - self._storage_read_at >= READ_STORAGE_SECONDS:
                self._storage, self._storage_read_at = status.storage_by_project(session), now
            self._gauges = read_gauges(session)

    def clear(self) -> None:
        """Forget the values, as the database is unavailable; they are read again in the next round that works."""
        self._gauges, self._read_at = None, -float("inf")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauges = self._gauges
        yield _gauge("database_up", "Whether the last read of the service's state succeeded.", gauges is not None)
        if gauges is not None:
            yield from _families(gauges)
            yield self._stored_bytes()

    def _stored_bytes(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "tunery_stored_bytes", "Bytes of a project's files in storage.", labels=["project_id", "project"]
        )
        for each in self._storage:
            family.add_metric([each.project_id, each.name], each.stored_bytes)
        return family


def read_gauges(session: Session) -> ServiceGauges:
    busy = {worker.id for worker in workers.busy(session)}
    counts = {(queue, is_busy): 0 for queue in WORKER_QUEUES for is_busy in (False, True)}
    for worker in workers.alive(session):
        key = (worker.queue, worker.id in busy)
        counts[key] = counts.get(key, 0) + 1
    held, expired = status.leases(session)
    return ServiceGauges(
        jobs=status.jobs_by_state(session),
        oldest=status.oldest_waiting(session),
        exports=status.unfinished_exports(session),
        held_leases=held,
        expired_leases=expired,
        workers=counts,
        snapshot_age_seconds=status.oldest_snapshot_seconds(session),
        crash_streak=status.longest_crash_streak(session),
        backlog=status.webhook_backlog(session),
        deliveries=status.deliveries_by_state(session),
        delivery_backlog=status.delivery_backlog(session),
        read_at=time.time(),
    )


def _families(gauges: ServiceGauges) -> Iterator[GaugeMetricFamily]:
    jobs = GaugeMetricFamily("tunery_jobs", "Unfinished jobs by state.", labels=["state"])
    for name, count in gauges.jobs.items():
        jobs.add_metric([name], count)
    yield jobs
    oldest = GaugeMetricFamily(
        "tunery_queue_oldest_age_seconds", "How long the oldest due job of a state has waited.", labels=["state"]
    )
    ages = {each.state: each.age_seconds for each in gauges.oldest}
    for name in (JobState.VALIDATING, JobState.QUEUED):
        oldest.add_metric([name.value], ages.get(name, 0))
    yield oldest
    living = GaugeMetricFamily("tunery_workers", "Workers with a recent heartbeat.", labels=["queue", "status"])
    for (queue, is_busy), count in gauges.workers.items():
        living.add_metric([queue, "busy" if is_busy else "idle"], count)
    yield living
    yield _gauge("exports_unfinished", "Queued and running exports.", gauges.exports)
    yield _gauge("leases_held", "Leases of jobs that workers hold.", gauges.held_leases)
    yield _gauge("leases_expired", "Held leases that have expired: their workers are lost.", gauges.expired_leases)
    yield _gauge("snapshot_age_seconds", "The training time that a crash would cost now.", gauges.snapshot_age_seconds)
    yield _gauge("crash_streak_max", "The most consecutive crashed attempts of an unfinished job.", gauges.crash_streak)
    yield _gauge("webhook_backlog", "Due webhook deliveries.", gauges.backlog.deliveries)
    yield _gauge("webhook_backlog_age_seconds", "How long the oldest has been due.", gauges.backlog.oldest_seconds)
    deliveries = GaugeMetricFamily(
        "tunery_deliveries", "Deliveries of adapters that have not ended, by state.", labels=["state"]
    )
    for name, count in gauges.deliveries.items():
        deliveries.add_metric([name], count)
    yield deliveries
    yield _gauge("delivery_backlog", "Due deliveries of adapters.", gauges.delivery_backlog.deliveries)
    yield _gauge(
        "delivery_backlog_age_seconds", "How long the oldest has been due.", gauges.delivery_backlog.oldest_seconds
    )
    yield _gauge("service_state_timestamp_seconds", "When these values were read.", gauges.read_at)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tunery_{name}", documentation, value=value)
