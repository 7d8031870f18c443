"""The response body of the service's status."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from app.api.schemas.common import Body, UnixTime
from app.api.schemas.queue import WorkerBody
from app.api.schemas.webhooks import EndpointHealth

Seconds = Annotated[float, AfterValidator(lambda seconds: round(seconds, 1))]


class ProblemBody(Body):
    code: str = Field(validation_alias="name")
    """The kind of the problem, for programs."""
    level: Literal["problem", "advice"]
    """`problem`: something does not work. `advice`: something that may become a problem."""
    message: str = Field(validation_alias="observed")
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
    observed: str = Field(validation_alias="detail")
    """The result in words."""


class OldestJob(Body):
    id: str = Field(validation_alias="job_id")
    project_id: str
    status: Literal["validating_files", "queued"] = Field(validation_alias="state")
    due_at: UnixTime = Field(validation_alias="due_since")
    """Since when the job could have started, in seconds since 1970."""
    waiting_seconds: Seconds = Field(validation_alias="age_seconds")
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
    model: str = Field(validation_alias="base_model")
    finished_at: UnixTime
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
    failed_at: UnixTime
    """When the last attempt failed, in seconds since 1970."""
    next_attempt_at: UnixTime | None
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
    oldest_due_seconds: Seconds
    """How long the oldest of them has been due; 0 without one."""
    failed: list[FailedDeliveryBody]
    """The latest that failed within the last day, at most 20."""
    retried: list[FailedDeliveryBody]
    """The latest, at most 20, that wait for another attempt after one without success; `status` of the job's deliveries
    says whether they are to be delivered, to be found again or to be withdrawn.
    """


class FailingEndpointBody(EndpointHealth):
    project_id: str | None
    """The project; null: it is the operator's webhook."""
    project: str | None = Field(validation_alias="project_name")
    """The name of the project; null: it is the operator's webhook."""


class WebhookStatus(Body):
    failing: list[FailingEndpointBody]
    """At most 20 that accept no events, or that the sender has disabled; not those disabled by request."""


class ProjectStorageBody(Body):
    project_id: str
    project: str = Field(validation_alias="name")
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
    finished_at: UnixTime = Field(validation_alias="updated_at")
    """Seconds since 1970."""
    details: dict[str, Any] = Field(validation_alias="data")
    """Where it is, and what it contains."""


class StatusBody(Body):
    object: Literal["organization.status"] = "organization.status"
    created_at: UnixTime
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
