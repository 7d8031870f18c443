"""Bodies for admins: the status of the service, retention rules, encrypted secrets and the audit log."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasPath, Field

from app.api.schemas.common import Body, Strict, UnixTime, WholeList
from app.api.schemas.queue import WorkerBody
from app.api.schemas.webhooks import EndpointHealth
from app.db.encryption import Protection
from app.domain.operations.retention import MAX_DAYS, RetentionKind

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


Days = Annotated[int, Field(ge=1, le=MAX_DAYS)]


class Rules(Strict):
    """Days by kind. Absent rules stay as they are; null removes a rule."""

    files: Days | None = None
    """Uploaded files that no unfinished job needs."""
    checkpoints: Days | None = None
    """Checkpoints of ended jobs, never a job's result."""
    logs: Days | None = None
    """Logs of the trainer, of ended jobs."""
    events: Days | None = None
    """Events of ended jobs, never the last one."""
    exports: Days | None = None
    """Exports, from their end."""


class ChangeRetention(Strict):
    rules: Rules
    """The rules to change."""
    dry_run: bool = False
    """Show what the rules delete now, and store nothing."""


class DueBody(Body):
    count: int
    """The number of files, checkpoints, logs, events or exports."""
    size_bytes: int
    """The bytes of their files or texts."""


class RetentionRuleBody(Body):
    object: Literal["organization.retention_rule"] = "organization.retention_rule"
    project_id: str
    project: str = Field(validation_alias=AliasPath("project", "name"))
    """The name of the project."""
    kind: RetentionKind
    """What the rule deletes: `logs` and `events` of ended jobs, for example."""
    days: int
    """The age at which they are deleted."""
    due: DueBody | None
    """What the rule deletes now; null unless the request includes it."""


def changes_of(body: ChangeRetention) -> dict[RetentionKind, int | None]:
    return {RetentionKind(kind): days for kind, days in body.rules.model_dump(exclude_unset=True).items()}


class EncryptionKeyBody(Body):
    fingerprint: str
    """The first characters of the SHA-256 of the key."""
    encrypts: bool
    """Whether new secrets are encrypted with it: the first key."""
    protects: int
    """The number of secrets that it decrypts."""


class SecretBody(Body):
    object: Literal["organization.secret"] = "organization.secret"
    kind: Literal["delivery_target", "webhook_endpoint"]
    """What the secret belongs to."""
    id: str
    """The id of the target or the endpoint."""
    name: str
    """The name of the target or the endpoint."""
    project_id: str | None
    """Its project."""
    protection: Protection
    """`current`: by the first key. `old_key`: by another one. `unencrypted`: by none. `lost`: by a key that is gone."""
    key: str | None
    """The fingerprint of the key that protects it; null: none does, or it is lost."""


class SecretList(WholeList):
    data: list[SecretBody]
    keys: list[EncryptionKeyBody]
    """The keys of TUNERY_SECRET_KEYS in their order."""


class RotationBody(Body):
    object: Literal["organization.secret_rotation"] = "organization.secret_rotation"
    rotated: int
    """How many were re-encrypted."""
    remaining: int
    """How many another call re-encrypts; 0: the change is complete."""
    lost: int
    """Secrets that no key decrypts: their owners set them again, or the operator adds the key."""


class ActorKey(Body):
    id: str


class Actor(Body):
    type: Literal["api_key", "operator", "system"]
    """An API key, an operator's command on the server, or the service itself at its first start."""
    id: str
    """The id of a key, or an operator's account and host."""
    api_key: ActorKey | None
    """The key; null for an operator and for the service itself."""


class AuditProject(Body):
    id: str


class AuditBody(Body):
    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str = Field(validation_alias="action")
    """The action, named after the route, such as fine_tuning.jobs.cancel."""
    effective_at: UnixTime = Field(validation_alias="created_at")
    """The time of the change, in seconds since 1970."""
    actor: Actor
    """Who made the change."""
    project: AuditProject | None
    """The changed project, else the key's project; null for a command without a project."""
    object_ids: list[str]
    """The ids in the path, and of the created object."""
    ip_address: str | None = Field(validation_alias="address")
    """The client's address; behind a proxy that is not trusted, the proxy's address. Null for a command."""
    request_id: str | None
    """The `x-request-id` of the response, which is also in the API's log; null for a command."""
