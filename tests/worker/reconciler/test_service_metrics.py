"""Metrics of the whole service, which the reconciler reads from PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from app.db.engine import DATABASE_UNAVAILABLE, transaction
from app.db.scheduling import device_losses, workers
from app.db.tables import Project
from app.domain.jobs.states import Reason
from tests.factories import make_base_model, make_file, make_job
from worker.node.resources import Resources, open_resources
from worker.reconciler.service_metrics import ServiceMetrics


def values(service_metrics: ServiceMetrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(service_metrics)
    return registry


def test_the_state_of_the_service_is_exposed(resources: Resources, project: Project, tmp_path: Path) -> None:
    with transaction(resources.sessions) as session:
        make_base_model(session, tmp_path / "base")
        make_job(session, project, make_file(session, resources.storage, project, b"1234567"))
        workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, {})
        workers.heartbeat(session, "gpu1@host#1", "gpu", "host", 1, {})
        for _ in range(device_losses.MAX_IN_A_ROW):
            device_losses.count(session, "gpu1@host#1", "ftjob-1", Reason.DEVICE_LOST)
    service_metrics = ServiceMetrics(resources)
    service_metrics.read_if_due()
    registry = values(service_metrics)
    assert registry.get_sample_value("tunery_database_up") == 1
    assert registry.get_sample_value("tunery_jobs", {"state": "validating_files"}) == 1
    assert registry.get_sample_value("tunery_jobs", {"state": "running"}) == 0
    assert registry.get_sample_value("tunery_workers", {"queue": "gpu", "status": "idle"}) == 1
    assert registry.get_sample_value("tunery_workers", {"queue": "gpu", "status": "out_of_service"}) == 1
    assert registry.get_sample_value("tunery_workers", {"queue": "cpu", "status": "busy"}) == 0
    assert 0 < registry.get_sample_value("tunery_queue_oldest_age_seconds", {"state": "validating_files"}) < 60
    assert registry.get_sample_value("tunery_deliveries", {"state": "pending"}) == 0
    assert registry.get_sample_value("tunery_delivery_backlog_age_seconds") == 0
    labels = {"project": "default", "project_id": project.id}
    assert registry.get_sample_value("tunery_stored_bytes", labels) == 7
    service_metrics.clear()  # the database is unavailable
    assert registry.get_sample_value("tunery_database_up") == 0
    assert registry.get_sample_value("tunery_leases_held") is None


def test_a_failed_read_is_repeated_at_once(resources: Resources) -> None:
    unreachable = resources.settings.model_copy(
        update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:1/x?connect_timeout=1"}
    )
    broken = open_resources(unreachable)
    service_metrics = ServiceMetrics(broken)
    for _ in range(2):
        with pytest.raises(DATABASE_UNAVAILABLE):
            service_metrics.read_if_due()
        service_metrics.clear()
    broken.close()
