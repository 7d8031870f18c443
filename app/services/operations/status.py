"""The state of the whole service on one screen, for operators."""

from __future__ import annotations

import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.db.operations import status
from app.db.scheduling import workers
from app.db.tables import Worker
from app.db.webhooks import endpoints, operator
from app.domain.jobs.states import Reason
from app.domain.operations.checks import ServiceFacts, ServiceName, find_problems
from app.services import queue
from app.services.operations import secrets
from app.services.operations.health import ProbeResult

PERIOD = timedelta(days=1)
MAX_FAILED_JOBS = MAX_FAILED_DELIVERIES = MAX_FAILING_ENDPOINTS = 20
SERVICES: tuple[ServiceName, ...] = ("reconciler", "webhooks", "deliveries")


def view(
    session: Session, project_id: str, checks: Sequence[ProbeResult], data_dir: Path, encryption_keys: Sequence[str]
) -> dict[str, Any]:
    """Read the state of the service, as StatusBody shows it. `project_id` is the caller's, who must be an admin."""
    living = queue.view_workers(session, project_id, is_admin=True)
    facts_jobs, oldest = status.jobs_by_state(session), status.oldest_waiting(session)
    reports = status.reports(session)
    failed_by_code = status.failures_by_code(session, PERIOD)
    delivery_backlog = status.delivery_backlog(session)
    failed_deliveries = status.failed_deliveries(session, PERIOD, MAX_FAILED_DELIVERIES)
    retried_deliveries = status.retried_deliveries(session, MAX_FAILED_DELIVERIES)
    failing_endpoints = endpoints.failing(session, MAX_FAILING_ENDPOINTS)
    backup = reports.get("backup")
    facts = ServiceFacts(
        jobs=facts_jobs,
        living_workers=_count_by_queue(living),
        idle_workers=_count_by_queue([worker for worker in living if worker.status == "idle"]),
        broken_workers=[worker.id for worker in living if worker.status == "out_of_service"],
        lost_workers=[worker.id for worker in workers.lost(session)],
        worker_disks=_worker_disks(living, data_dir),
        expired_leases=status.leases(session)[1],
        oldest_age_seconds={each.state: each.age_seconds for each in oldest},
        failed_by_code=failed_by_code,
        silent_seconds={name: reports[name].age_seconds if name in reports else None for name in SERVICES},
        is_copy=status.is_copy(session),
        has_webhooks=status.has_webhooks(session),
        operator_webhook_off=operator.off_reason(session),
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
    problems = find_problems(facts)
    return {
        "created_at": status.server_time(session),
        "healthy": all(problem.level != "problem" for problem in problems),
        "problems": problems,
        "checks": checks,
        "workers": living,
        "queue": facts_jobs | {"oldest": oldest},
        "failed_jobs": {
            "total": sum(failed_by_code.values()),
            "by_code": failed_by_code,
            "data": [
                {**row._mapping, "remedy": (reason := Reason.of(row.code)) and reason.remedy}
                for row in status.failed_jobs(session, PERIOD, MAX_FAILED_JOBS)
            ],
        },
        "deliveries": status.deliveries_by_state(session)
        | {
            "due": delivery_backlog.deliveries,
            "oldest_due_seconds": delivery_backlog.oldest_seconds,
            "failed": failed_deliveries,
            "retried": retried_deliveries,
        },
        "webhooks": {"failing": failing_endpoints},
        "storage": {
            "disk_free_bytes": disk_free_bytes,
            "disk_bytes": disk_bytes,
            "projects": status.storage_by_project(session),
        },
        "last_backup": backup,
    }


def _worker_disks(living: Sequence[Worker], data_dir: Path) -> dict[str, str]:
    """What is wrong with the data disks of workers' hosts, except with this process's own, which has a check."""
    own, problems = (socket.gethostname(), str(data_dir)), {}
    for row in living:
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


def _count_by_queue(rows: Sequence[Worker]) -> dict[str, int]:
    return Counter(row.queue for row in rows)
