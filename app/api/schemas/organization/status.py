"""The response body of the service's status."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, unix_seconds, unix_seconds_or_none
from app.api.schemas.queue import WorkerBody, render_worker
from app.db.operations.status import FailedDelivery, FailedJob
from app.domain.jobs.remedies import remedy
from app.domain.jobs.states import JobState
from app.services.operations.status import StatusView


class ProblemBody(Body):
    code: str
    """The kind of the problem, for programs."""
    level: Literal["problem", "advice"]
    """`problem`: something does not work. `advice`: something that may become a problem."""
    message: str
    """What was observed."""
    remedy: str
    """What to do."""


class StatusCheck(Body):
    name: str
    """The dependency."""
    ok: bool
    """Whether the check passed."""
    required: bool
    """Whether the service is not ready if this check fails."""
    observed: str
    """The result in words."""


class OldestJob(Body):
    id: str
    project_id: str
    status: Literal["validating_files", "queued"]
    due_at: int
    """Since when the job could have started, in seconds since 1970."""
    waiting_seconds: float
    """The time since then."""


class QueueStatus(Body):
    validating_files: int
    """The number of jobs that wait for the validation of their files."""
    queued: int
    """The number of queued jobs."""
    running: int
    """The number of running jobs."""
    paused: int
    """The number of paused jobs."""
    oldest: list[OldestJob]
    """The oldest due job of `validating_files` and of `queued`; paused jobs are not due."""


class FailedJobBody(Body):
    id: str
    project_id: str
    project: str
    """The name of the project."""
    model: str
    finished_at: int
    """When it failed, in seconds since 1970."""
    code: str
    """The error code of the job."""
    message: str | None
    """The error message of the job."""
    remedy: str | None
    """What to do; null for a code of an earlier release."""


class FailureStatus(Body):
    total: int
    """The number of failed jobs."""
    by_code: dict[str, int]
    """The number of failed jobs by error code."""
    data: list[FailedJobBody]
    """The latest 20 of them."""


class FailedDeliveryBody(Body):
    id: str
    project_id: str
    project: str
    """The name of the project."""
    target: str
    """The name of the delivery target."""
    job_id: str
    """The job whose adapter was not delivered."""
    model: str
    failed_at: int
    """When the last attempt failed, in seconds since 1970."""
    next_attempt_at: int | None
    """The next attempt, in seconds since 1970; null: it is not tried again."""
    error: str | None
    """The reason, with what to do."""


class DeliveryStatus(Body):
    pending: int
    """Deliveries that wait for their next attempt, or are carried out now."""
    withdrawing: int
    """Adapters that still have to be removed from a target."""
    due: int
    """Deliveries whose next attempt is due and does not run yet."""
    oldest_due_seconds: float
    """How long the oldest of them has been due; 0 without one."""
    failed: list[FailedDeliveryBody]
    """The latest that failed within the last day, at most 20."""
    retried: list[FailedDeliveryBody]
    """The latest, at most 20, that wait for another attempt after one without success; `status` of the job's deliveries
    says whether they are to be delivered, to be found again or to be withdrawn.
    """


class FailingEndpointBody(Body):
    id: str
    project_id: str | None
    """The project; null: it is the operator's webhook."""
    project: str | None
    """The name of the project; null: it is the operator's webhook."""
    name: str
    """The display name."""
    failing_since: int | None
    """The first failure after the last success, in seconds since 1970; null: it was disabled for another reason."""
    disabled_reason: str | None
    """Why the sender has disabled it; null: it is enabled."""


class WebhookStatus(Body):
    failing: list[FailingEndpointBody]
    """At most 20 that accept no events, or that the sender has disabled; not those disabled by request."""


class ProjectStorageBody(Body):
    project_id: str
    project: str
    """The name of the project."""
    stored_bytes: int
    """All files whose bytes still exist."""


class StorageStatus(Body):
    disk_free_bytes: int | None
    """The free space of the disk; null if the data directory cannot be read."""
    disk_bytes: int | None
    """The size of the disk; null if the data directory cannot be read."""
    projects: list[ProjectStorageBody]
    """The projects, the largest first."""


class BackupStatus(Body):
    finished_at: int
    """Seconds since 1970."""
    details: dict[str, Any]
    """Where it is, and what it contains."""


class StatusBody(Body):
    object: Literal["organization.status"]
    created_at: int
    """When the state was read, in seconds since 1970."""
    healthy: bool
    """Whether there is no problem of the level `problem`."""
    problems: list[ProblemBody]
    """What an operator should do, the most urgent first."""
    checks: list[StatusCheck]
    """The checks of the API process that responded, as in `/readyz`."""
    workers: list[WorkerBody]
    """The workers with a heartbeat within the last minute."""
    queue: QueueStatus
    """Unfinished jobs by status, and the oldest due ones."""
    failed_jobs: FailureStatus
    """The jobs that failed within the last day."""
    deliveries: DeliveryStatus
    """Deliveries of adapters to the targets of all projects."""
    webhooks: WebhookStatus
    """Webhook endpoints of all projects, and the operator's."""
    storage: StorageStatus
    """The disk of the data directory, and the stored bytes of every project."""
    last_backup: BackupStatus | None
    """The last complete backup; null: none was made."""


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
    return {
        "id": job.id,
        "project_id": job.project_id,
        "project": job.project,
        "model": job.base_model,
        "finished_at": unix_seconds(job.finished_at),
        "code": job.code,
        "message": job.message,
        "remedy": remedy(job.code),
    }


def _failed_delivery(delivery: FailedDelivery) -> dict[str, Any]:
    return vars(delivery) | {
        "failed_at": unix_seconds(delivery.failed_at),
        "next_attempt_at": unix_seconds_or_none(delivery.next_attempt_at),
    }
