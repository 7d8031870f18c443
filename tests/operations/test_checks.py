"""The rules that find problems of a service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.domain.operations.checks import ServiceFacts, find_problems

HEALTHY = ServiceFacts(
    jobs={"queued": 2, "validating_files": 1},
    living_workers={"gpu": 1, "cpu": 1},
    idle_workers={},
    broken_workers=[],
    lost_workers=[],
    worker_disks={},
    expired_leases=0,
    oldest_age_seconds={"queued": 7200.0},
    failed_by_code={"invalid_training_file": 3},
    silent_seconds={"reconciler": 5.0, "webhooks": 10.0, "deliveries": 5.0},
    is_copy=False,
    has_webhooks=True,
    operator_webhook_off=None,
    backlog_age_seconds=2.0,
    has_delivery_targets=True,
    delivery_backlog_age_seconds=3.0,
    failed_deliveries={},
    retried_deliveries={},
    failing_endpoints=[],
    lost_secrets=0,
    backup_age_seconds=3600.0,
    backup_damaged_count=0,
)


def test_a_busy_service_with_failed_files_of_users_is_healthy() -> None:
    assert find_problems(HEALTHY) == []


@pytest.mark.parametrize(
    ("change", "code", "level"),
    [
        ({"living_workers": {"cpu": 1}}, "no_gpu_worker", "problem"),
        ({"living_workers": {"gpu": 1}}, "no_cpu_worker", "problem"),
        ({"lost_workers": ["gpu0@host#1"]}, "workers_lost", "advice"),
        ({"broken_workers": ["gpu0@host#1"]}, "workers_out_of_service", "problem"),
        ({"worker_disks": {"b": "only 1 GB of 1 TB are free"}}, "worker_disk_check_failed", "problem"),
        ({"expired_leases": 1}, "leases_expired", "problem"),
        ({"silent_seconds": {"reconciler": 300.0, "webhooks": 1.0, "deliveries": 1.0}}, "no_reconciler", "problem"),
        ({"silent_seconds": {"reconciler": None, "webhooks": 1.0, "deliveries": 1.0}}, "no_reconciler", "problem"),
        ({"silent_seconds": {"reconciler": 1.0, "webhooks": None, "deliveries": 1.0}}, "no_webhook_sender", "problem"),
        ({"silent_seconds": {"reconciler": 1.0, "webhooks": 1.0}}, "no_delivery_sender", "problem"),
        ({"delivery_backlog_age_seconds": 3600.0}, "deliveries_delayed", "problem"),
        ({"failed_deliveries": {"production": 2}}, "deliveries_failed", "advice"),
        ({"retried_deliveries": {"production": 2}}, "deliveries_retried", "advice"),
        ({"failing_endpoints": ["ci"]}, "webhooks_failing", "advice"),
        ({"lost_secrets": 2}, "secrets_lost", "problem"),
        ({"idle_workers": {"gpu": 1}}, "queue_stalled", "advice"),
        ({"failed_by_code": {"worker_crash_loop": 1}}, "jobs_failed", "problem"),
        ({"backlog_age_seconds": 3600.0}, "webhooks_delayed", "problem"),
        ({"operator_webhook_off": "it responded with 410 Gone"}, "operator_webhook_off", "problem"),
        ({"is_copy": True, "backlog_age_seconds": 3600.0, "delivery_backlog_age_seconds": 3600.0}, "copy", "advice"),
        ({"backup_age_seconds": None}, "no_backup", "advice"),
        ({"backup_age_seconds": 30 * 86_400.0}, "backup_old", "advice"),
        ({"backup_damaged_count": 2}, "backup_damaged", "problem"),
        ({"failed_checks": [("storage", False, "full")]}, "storage_check_failed", "problem"),
        ({"failed_checks": [("database", True, "away")]}, "database_check_failed", "problem"),
        ({"failed_checks": [("disk", False, "full")]}, "disk_check_failed", "problem"),
        ({"failed_checks": [("broker", False, "away")]}, "broker_check_failed", "advice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_found_alone_with_a_remedy(change: dict[str, Any], code: str, level: str) -> None:
    (problem,) = find_problems(replace(HEALTHY, **change))
    assert (problem.name, problem.level) == (code, level)
    assert problem.observed.endswith(".")
    assert problem.remedy


def test_silent_senders_are_no_problem_without_endpoints_and_targets() -> None:
    silent = {"reconciler": 1.0, "webhooks": None, "deliveries": None}
    facts = replace(HEALTHY, has_webhooks=False, has_delivery_targets=False, silent_seconds=silent)
    assert find_problems(facts) == []


def test_problems_come_before_advice() -> None:
    facts = replace(HEALTHY, backup_age_seconds=None, expired_leases=2, lost_workers=["a", "b", "c", "d"])
    assert [each.level for each in find_problems(facts)] == ["problem", "advice", "advice"]
