"""Metrics of the whole service, read from PostgreSQL. Every reconciler exposes them, also one that is not the leader.

They are read by the reconciler's own loop and not by a scrape, so scrapers cause no queries.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

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


class ServiceMetrics(Collector):
    """A collector with the values of the last read. While the database is unavailable, `tunery_database_up` is 0 and
    the values that come from it are absent."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._families: list[GaugeMetricFamily] = []
        self._stored_bytes: GaugeMetricFamily | None = None
        self._read_at = self._storage_read_at = -float("inf")

    def read_if_due(self) -> None:
        """Read the values anew if they are old. Raises DATABASE_UNAVAILABLE."""
        now = time.monotonic()
        if now - self._read_at < READ_SECONDS:
            return
        self._read_at = now
        with transaction(self._resources.sessions) as session:
            if self._stored_bytes is None or now - self._storage_read_at >= READ_STORAGE_SECONDS:
                self._stored_bytes, self._storage_read_at = _stored_bytes(session), now
            self._families = [*_families(session), self._stored_bytes]

    def clear(self) -> None:
        """Forget the values, as the database is unavailable; they are read again in the next round that works."""
        self._families, self._read_at = [], -float("inf")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        is_up = bool(self._families)
        yield _gauge("database_up", "Whether the last read of the service's state succeeded.", is_up)
        yield from self._families


def _stored_bytes(session: Session) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "tunery_stored_bytes", "Bytes of a project's files in storage.", labels=["project_id", "project"]
    )
    for each in status.storage_by_project(session):
        family.add_metric([each.project_id, each.name], each.stored_bytes)
    return family


def _families(session: Session) -> Iterator[GaugeMetricFamily]:
    yield _by_label("jobs", "Unfinished jobs by state.", "state", status.jobs_by_state(session))
    oldest = dict.fromkeys((JobState.VALIDATING.value, JobState.QUEUED.value), 0.0)
    oldest |= {each.state: each.age_seconds for each in status.oldest_waiting(session)}
    yield _by_label("queue_oldest_age_seconds", "How long the oldest due job of a state has waited.", "state", oldest)
    busy = {worker.id for worker in workers.busy(session)}
    counts = Counter({(queue, name): 0 for queue in WORKER_QUEUES for name in ("idle", "busy", "out_of_service")})
    for each in workers.alive(session):
        each.is_busy = each.id in busy
        counts[each.queue, each.status] += 1
    living = GaugeMetricFamily("tunery_workers", "Workers with a recent heartbeat.", labels=["queue", "status"])
    for labels, count in counts.items():
        living.add_metric(labels, count)
    yield living
    held, expired = status.leases(session)
    backlog, waiting = status.webhook_backlog(session), status.delivery_backlog(session)
    for name, documentation, value in (
        ("exports_unfinished", "Queued and running exports.", status.unfinished_exports(session)),
        ("leases_held", "Leases of jobs that workers hold.", held),
        ("leases_expired", "Held leases that have expired: their workers are lost.", expired),
        (
            "snapshot_age_seconds",
            "The training time that a crash would cost now.",
            status.oldest_snapshot_seconds(session),
        ),
        (
            "crash_streak_max",
            "The most consecutive crashed attempts of an unfinished job.",
            status.longest_crash_streak(session),
        ),
        ("webhook_backlog", "Due webhook deliveries.", backlog.deliveries),
        ("webhook_backlog_age_seconds", "How long the oldest has been due.", backlog.oldest_seconds),
        ("delivery_backlog", "Due deliveries of adapters.", waiting.deliveries),
        ("delivery_backlog_age_seconds", "How long the oldest has been due.", waiting.oldest_seconds),
        ("service_state_timestamp_seconds", "When these values were read.", time.time()),
    ):
        yield _gauge(name, documentation, value)
    unfinished = status.deliveries_by_state(session)
    yield _by_label("deliveries", "Deliveries of adapters that have not ended, by state.", "state", unfinished)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tunery_{name}", documentation, value=value)


def _by_label(name: str, documentation: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tunery_{name}", documentation, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family
