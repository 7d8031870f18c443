"""The response body of the service's status."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, unix_seconds, unix_seconds_or_none
from app.api.schemas.queue import WorkerBody, render_worker
from app.db.operations.status import FailedDelivery, FailedJob
from app.domain.jobs.states import JobState, Reason
from app.services.operations.status import StatusView


class ProblemBody(Body):
    code: str
    level: Literal["problem", "advice"]
    message: str
    remedy: str


class StatusCheck(Body):
    name: str
    ok: bool
    required: bool
    observed: str


class OldestJob(Body):
    id: str
    project_id: str
    status: Literal["validating_files", "queued"]
    due_at: int
    waiting_seconds: float


class QueueStatus(Body):
    validating_files: int
    queued: int
    running: int
    paused: int
    oldest: list[OldestJob]


class FailedJobBody(Body):
    id: str
    project_id: str
    project: str
    model: str
    finished_at: int
    code: str
    message: str | None
    remedy: str | None


class FailureStatus(Body):
    total: int
    by_code: dict[str, int]
    data: list[FailedJobBody]


class FailedDeliveryBody(Body):
    id: str
    project_id: str
    project: str
    target: str
    job_id: str
    model: str
    failed_at: int
    next_attempt_at: int | None
    error: str | None


class DeliveryStatus(Body):
    pending: int
    withdrawing: int
    due: int
    oldest_due_seconds: float
    failed: list[FailedDeliveryBody]
    retried: list[FailedDeliveryBody]


class FailingEndpointBody(Body):
    id: str
    project_id: str | None
    project: str | None
    name: str
    failing_since: int | None
    disabled_reason: str | None


class WebhookStatus(Body):
    failing: list[FailingEndpointBody]


class ProjectStorageBody(Body):
    project_id: str
    project: str
    stored_bytes: int


class StorageStatus(Body):
    disk_free_bytes: int | None
    disk_bytes: int | None
    projects: list[ProjectStorageBody]


class BackupStatus(Body):
    finished_at: int
    details: dict[str, Any]


class StatusBody(Body):
    object: Literal["organization.status"]
    created_at: int
    healthy: bool
    problems: list[ProblemBody]
    checks: list[StatusCheck]
    workers: list[WorkerBody]
    queue: QueueStatus
    failed_jobs: FailureStatus
    deliveries: DeliveryStatus
    webhooks: WebhookStatus
    storage: StorageStatus
    last_backup: BackupStatus | None


def render_status(view: StatusView) -> dict[str, Any]:
    return {
        "object": "organization.status",
        "created_at": unix_seconds(view.read_at),
        "healthy": view.is_healthy,
        "problems": [vars(problem) for problem in view.problems],
        "checks": [
            {"name": check.name, "ok": check.ok, "required": check.required, "observed": check.detail}
            for check in view.checks
        ],
        "workers": [render_worker(worker) for worker in view.workers],
        "queue": _queue(view),
        "failed_jobs": {
            "total": sum(view.failed_by_code.values()),
            "by_code": dict(view.failed_by_code),
            "data": [_failed_job(job) for job in view.failed],
        },
        "deliveries": {
            **view.deliveries,
            "due": view.delivery_backlog.deliveries,
            "oldest_due_seconds": round(view.delivery_backlog.oldest_seconds, 1),
            "failed": [_failed_delivery(each) for each in view.failed_deliveries],
            "retried": [_failed_delivery(each) for each in view.retried_deliveries],
        },
        "webhooks": {
            "failing": [
                vars(each) | {"failing_since": unix_seconds_or_none(each.failing_since)}
                for each in view.failing_endpoints
            ]
        },
        "storage": {
            "disk_free_bytes": view.disk_free_bytes,
            "disk_bytes": view.disk_bytes,
            "projects": [
                {"project_id": each.project_id, "project": each.name, "stored_bytes": each.stored_bytes}
                for each in view.storage
            ],
        },
        "last_backup": None
        if view.last_backup is None
        else {"finished_at": unix_seconds(view.last_backup.updated_at), "details": view.last_backup.data},
    }


def _queue(view: StatusView) -> dict[str, Any]:
    states = (JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)
    oldest = [
        {
            "id": each.job_id,
            "project_id": each.project_id,
            "status": each.state.value,
            "due_at": unix_seconds(each.due_since),
            "waiting_seconds": round(each.age_seconds, 1),
        }
        for each in view.oldest
    ]
    return {state.value: view.jobs.get(state, 0) for state in states} | {"oldest": oldest}


def _failed_job(job: FailedJob) -> dict[str, Any]:
    reason = Reason.of(job.code)
    return {
        "id": job.id,
        "project_id": job.project_id,
        "project": job.project,
        "model": job.base_model,
        "finished_at": unix_seconds(job.finished_at),
        "code": job.code,
        "message": job.message,
        "remedy": reason.remedy if reason else None,
    }


def _failed_delivery(delivery: FailedDelivery) -> dict[str, Any]:
    return vars(delivery) | {
        "failed_at": unix_seconds(delivery.failed_at),
        "next_attempt_at": unix_seconds_or_none(delivery.next_attempt_at),
    }
