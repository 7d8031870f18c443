"""Response bodies of workers and the queue; fields for admin keys are null for other keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasPath, BeforeValidator, Field

from app.api.schemas.common import Body, UnixTime
from app.db.tables import Worker
from app.services.queue import public_worker_id

WorkerId = Annotated[str, BeforeValidator(public_worker_id)]
Rounded = Annotated[float, AfterValidator(lambda number: round(number, 1))]


class WorkerDevice(Body):
    kind: str | None
    """`cpu` or `cuda`; null: unknown."""
    name: str | None
    """The name that the driver reports; null: unknown."""
    memory_bytes: int | None
    """The memory of the GPU, or the memory that the worker may use; null: unknown."""
    count: int
    """The number of GPUs that it assigns to a job."""
    slots_per_gpu: int
    """The number of workers that share the GPU, each with an equal part of its memory."""
    slot_bytes: int | None
    """The memory of a job in one slot; null on a GPU that is not shared."""


class WorkerBody(Body):
    id: WorkerId
    object: Literal["worker"] = "worker"
    queue: Literal["gpu", "cpu"]
    """`gpu` trains, on any device; `cpu` validates files."""
    status: Literal["idle", "busy", "out_of_service"]
    """`busy`: it runs a job or an evaluation. `out_of_service`: it lost its GPU in three attempts in a row, and claims
    nothing until an operator resumes it."""
    device: WorkerDevice
    """The device that it computes on."""
    models: list[str]
    """Base models that it can train, restricted to those visible to you."""
    labels: list[str]
    """Labels that a job can require with `worker_labels`."""
    job_id: str | None
    """The job that it runs; null: none, or a job of another project."""
    evaluation_id: str | None
    """The evaluation that it runs; null: none, or one of another project."""
    started_at: UnixTime
    """Seconds since 1970."""
    seen_at: UnixTime
    """The last heartbeat, in seconds since 1970."""
    name: str | None
    """The configured name; null except for admin keys."""
    hostname: str | None
    """The host; null except for admin keys."""
    pid: int | None
    """The process id; null except for admin keys."""
    versions: dict[str, str | None] | None
    """Versions of its libraries; null except for admin keys."""


def without_admin_fields(worker: Worker) -> WorkerBody:
    hidden = dict.fromkeys(("name", "hostname", "pid", "versions"))
    return WorkerBody.model_validate(worker).model_copy(update=hidden)


class JobCounts(Body):
    validating: int
    """Jobs whose files are being validated or wait for validation."""
    waiting: int
    """Jobs that wait for a worker."""
    running: int
    """Running jobs."""


class WorkerCounts(Body):
    alive: int
    """Workers with a heartbeat within the last minute."""
    busy: int
    """Workers among them that run a job or an evaluation."""


class RunningBody(Body):
    id: str
    project_id: str
    """The project of the job."""
    model: str = Field(validation_alias="base_model")
    """The base model."""
    worker_id: WorkerId = Field(validation_alias="lease_owner")
    """The worker that runs it, as in `/v1/workers`."""
    priority: int
    """The priority of the job."""
    urgent: bool = Field(validation_alias="is_urgent")
    """Whether the job is urgent."""
    phase: str | None
    """The current stage; null: not known yet."""
    started_at: UnixTime = Field(validation_alias="attempt_started_at")
    """When this attempt started, in seconds since 1970."""
    expected_finish: UnixTime = Field(validation_alias="expected_finish_at")
    """By the job's own estimate, else by its plan; in seconds since 1970."""
    gives_way: bool
    """Whether it is being preempted: it stops at its next step for an urgent job and resumes later."""


class QueuedFields(Body):
    """What a job shows as long as it waits for a worker."""

    id: str
    created_at: UnixTime
    expected_start: UnixTime | None = Field(validation_alias="expected_start_at")
    """A forecast, in seconds since 1970; null: the job is not queued, no live worker can run it, or there is no
    forecast yet."""
    waiting_for: str | None
    """What no live worker offers (a model, labels, memory), or that the job is too large for a slot and waits for a
    whole GPU, in a sentence; null if a worker can run the job."""
    priority: int
    """Order among the queued jobs of the project: higher runs first."""
    urgent: bool = Field(validation_alias="is_urgent")
    """Whether the job runs before all jobs that are not urgent, of every project."""
    worker_labels: list[str]
    """Only a worker with all of these labels runs the job."""


class WaitingBody(QueuedFields):
    project_id: str
    """The project of the job."""
    model: str = Field(validation_alias="base_model")
    """The base model."""
    position: int = Field(validation_alias="queue_position")
    """The position over all projects; 1 is next. A new job is last until the next forecast."""
    phase: str | None
    """`waiting_for_storage` after an attempt that found a full disk, with an automatic retry; else null."""
    planned_seconds: float | None
    """The estimated duration of training; null until it is known."""


class QueuedEvaluation(Body):
    id: str
    """The evaluation."""
    fine_tuning_job_id: str = Field(validation_alias="job_id")
    """The job whose adapter it evaluates."""
    project_id: str
    """The project of the job."""
    model: str = Field(validation_alias="base_model")
    """The base model."""
    status: Literal["queued", "running"] = Field(validation_alias="state")
    """`running`, or `queued`."""
    worker_id: WorkerId | None = Field(validation_alias="lease_owner")
    """The worker that runs it, as in `/v1/workers`; null: it waits."""
    created_at: UnixTime
    """Seconds since 1970."""
    started_at: UnixTime | None = Field(validation_alias="attempt_started_at")
    """When this attempt started, in seconds since 1970; null: it waits."""
    answers: int | None = Field(None, validation_alias=AliasPath("progress", "answers"))
    """The answers so far, of base model and adapter together; null: not known yet."""
    total_answers: int | None = Field(None, validation_alias=AliasPath("progress", "total_answers"))
    """All answers that are generated; null: not known yet."""
    estimated_seconds: float | None = Field(None, validation_alias=AliasPath("plan", "estimated_seconds"))
    """An upper estimate of the duration; null until it is known."""


class StandingBody(Body):
    project_id: str
    gpu_seconds: Rounded = Field(validation_alias="usage")
    """Past usage with exponential decay; the half-life is a day unless the operator changes it."""
    held_gpu_seconds: Rounded = Field(validation_alias="held")
    """What its running jobs are still planned to use."""
    share_weight: float = Field(validation_alias="weight")
    """The share of the GPUs when several projects have queued jobs."""
    share: Rounded
    """The sum of `gpu_seconds` and `held_gpu_seconds`, divided by `share_weight`: the smallest goes first."""
    running_jobs: int = Field(validation_alias="running")
    """The number of running jobs."""
    max_running_jobs: int | None = Field(validation_alias="max_running")
    """The maximum number of running jobs; null: no limit."""


class QueueBody(Body):
    object: Literal["queue"] = "queue"
    workers: WorkerCounts
    """Workers that train."""
    own: JobCounts
    """Counts of your project's jobs."""
    others: JobCounts
    """Counts of all other projects' jobs."""
    running: list[RunningBody]
    """Running jobs of your project, for admin keys of all projects, oldest attempt first."""
    waiting: list[WaitingBody]
    """Queued jobs of your project, for admin keys of all projects, in order."""
    has_more: bool
    """Whether more jobs wait than are shown: send a larger `limit`."""
    evaluations: list[QueuedEvaluation]
    """Unfinished evaluations of your project, for admin keys of all projects, running ones first; at most `limit`."""
    projects: list[StandingBody]
    """The usage of your project; for admin keys of all projects, the next in turn first."""
