"""The state of the whole service on one screen, for operators."""

from __future__ import annotations

import shutil
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.operations import status
from app.db.scheduling import workers
from app.db.webhooks import operator
from app.domain.operations.status import Problem, ServiceFacts, ServiceName, find_problems
from app.services import queue
from app.services.operations import secrets
from app.services.operations.health import ProbeResult
from app.services.queue import WorkerView

PERIOD = timedelta(days=1)
MAX_FAILED_JOBS = MAX_FAILED_DELIVERIES = MAX_FAILING_ENDPOINTS = 20
SERVICES: tuple[ServiceName, ...] = ("reconciler", "webhooks", "deliveries")


@dataclass(frozen=True)
class StatusView:
    problems: Sequence[Problem]
    checks: Sequence[ProbeResult]
    workers: Sequence[WorkerView]
    jobs: Mapping[str, int]  # unfinished, by state
    oldest: Sequence[status.WaitingJob]
    failed: Sequence[status.FailedJob]  # the latest of the last day
    failed_by_code: Mapping[str, int]
    deliveries: Mapping[str, int]  # unfinished, by state
    delivery_backlog: status.Backlog
    failed_deliveries: Sequence[status.FailedDelivery]  # the latest of the last day
    retried_deliveries: Sequence[status.FailedDelivery]
    failing_endpoints: Sequence[status.FailingEndpoint]
    storage: Sequence[status.ProjectStorage]
    disk_free_bytes: int | None  # None: the data directory cannot be read
    disk_bytes: int | None
    last_backup: status.Report | None
    read_at: datetime

    @property
    def is_healthy(self) -> bool:
        return all(problem.level != "problem" for problem in self.problems)


def view(
    session: Session, project_id: str, checks: Sequence[ProbeResult], data_dir: Path, encryption_keys: Sequence[str]
) -> StatusView:
    """Read the state of the service. `project_id` is the caller's, who must be an admin."""
    living = queue.view_workers(session, project_id, is_admin=True)
    facts_jobs, oldest = status.jobs_by_state(session), status.oldest_waiting(session)
    reports = status.reports(session)
    failed_by_code = status.failures_by_code(session, PERIOD)
    delivery_backlog = status.delivery_backlog(session)
    failed_deliveries = status.failed_deliveries(session, PERIOD, MAX_FAILED_DELIVERIES)
    retried_deliveries = status.retried_deliveries(session, MAX_FAILED_DELIVERIES)
    failing_endpoints = status.failing_endpoints(session, MAX_FAILING_ENDPOINTS)
    backup = reports.get("backup")
    facts = ServiceFacts(
        jobs=facts_jobs,
        living_workers=_count_by_queue(living),
        idle_workers=_count_by_queue([worker for worker in living if not worker.is_busy]),
        lost_workers=[worker.id for worker in workers.lost(session)],
        worker_disks=_worker_disks(living, data_dir),
        expired_leases=status.leases(session)[1],
        oldest_age_seconds={each.state: each.age_seconds for each in oldest},
        failed_by_code=failed_by_code,
        silent_seconds={name: reports[name].age_seconds if name in reports else None for name in SERVICES},
        is_copy=status.is_copy(session),
        has_webhooks=status.has_webhooks(session),
        operator_webhook_off=operator.disabled_reason(session),
        backlog_age_seconds=status.webhook_backlog(session).oldest_seconds,
        has_delivery_targets=status.has_delivery_targets(session),
        delivery_backlog_age_seconds=delivery_backlog.oldest_seconds,
        failed_deliveries=Counter(each.target for each in failed_deliveries),
        retried_deliveries=Counter(each.target for each in retried_deliveries),
        failing_endpoints=[each.name for each in failing_endpoints if each.project_id is not None],
        lost_secrets=secrets.count_lost(session, encryption_keys),
        backup_age_seconds=None if backup is None else backup.age_seconds,
        backup_damaged_count=0 if backup is None else backup.data.get("damaged", 0),
        failed_checks=[(check.name, check.required, check.detail) for check in checks if not check.ok],
    )
    disk_bytes, disk_free_bytes = _disk_space(data_dir)
    return StatusView(
        problems=find_problems(facts),
        checks=checks,
        workers=living,
        jobs=facts_jobs,
        oldest=oldest,
        failed=status.failed_jobs(session, PERIOD, MAX_FAILED_JOBS),
        failed_by_code=failed_by_code,
        deliveries=status.deliveries_by_state(session),
        delivery_backlog=delivery_backlog,
        failed_deliveries=failed_deliveries,
        retried_deliveries=retried_deliveries,
        failing_endpoints=failing_endpoints,
        storage=status.storage_by_project(session),
        disk_free_bytes=disk_free_bytes,
        disk_bytes=disk_bytes,
        last_backup=backup,
        read_at=status.server_time(session),
    )


def _worker_disks(living: Sequence[WorkerView], data_dir: Path) -> dict[str, str]:
    """What is wrong with the data disks of workers' hosts, except with this process's own, which has a check."""
    own, problems = (socket.gethostname(), str(data_dir)), {}
    for row in (worker.row for worker in living):
        disk = row.about.get("disk") or {}  # a worker of an earlier release names none
        if disk.get("problem") and (row.hostname, disk["directory"]) != own:
            problems[row.hostname] = disk["problem"]
    return problems


def _disk_space(data_dir: Path) -> tuple[int, int] | tuple[None, None]:
    """Size and free space of the disk; None if it fails, for which the checks have the reason."""
    try:
        usage = shutil.disk_usage(data_dir)
    except OSError:
        return None, None
    return usage.total, usage.free


def _count_by_queue(views: Sequence[WorkerView]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for worker in views:
        counts[worker.row.queue] = counts.get(worker.row.queue, 0) + 1
    return counts
