"""The response body of a fine-tuning job: OpenAI's fields and extensions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from app.api.schemas.common import Body, ListBody, WarningBody, unix_seconds, unix_seconds_or_none
from app.api.schemas.deliveries import DeliveryOfJob
from app.api.schemas.jobs.evaluations import EvaluationError
from app.domain.artifacts.compatibility import Compatibility, job_compatibility
from app.domain.evaluations.summary import EvaluationSummary
from app.domain.files.files import FileOrigin
from app.domain.jobs.spec import Hyperparameters, LoraSpec, QuantizationSpec
from app.domain.jobs.states import Desired, JobState, Reason

OPENAI_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
PROGRESS = ("step", "total_steps", "epoch", "tokens_per_second", "eta_seconds")


class JobError(Body):
    code: str
    message: str
    param: str | None
    cause: str | None
    remedy: str | None


class LegacyHyperparameters(Body):
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float | None


class NoHyperparameters(Body):
    """OpenAI's older field exists for supervised jobs only; strict clients accept an empty object for other jobs."""


class HyperparametersBody(Body):
    hyperparameters: Hyperparameters


class SupervisedMethod(Body):
    type: Literal["supervised"]
    supervised: HyperparametersBody


class DpoMethod(Body):
    type: Literal["dpo"]
    dpo: HyperparametersBody


class Progress(Body):
    step: int
    total_steps: int
    epoch: float | None  # this field and the next two are null before the first step
    tokens_per_second: float | None
    eta_seconds: float | None


class AdapterOfJob(Body):
    """`sha256` and `bytes` are those of the archive."""

    files: list[str]
    archive_file_id: str
    format: Literal["peft"]
    sha256: str
    bytes: int
    base_model: str


class EvaluationOfJob(Body):
    """The newest evaluation of the job; `requested`: it is made when the training has succeeded."""

    id: str | None
    status: Literal["requested", "queued", "running", "succeeded", "failed", "cancelled"]
    file: str
    precision: str | None
    summary: EvaluationSummary | None
    error: EvaluationError | None


class FileOrigins(Body):
    """Where the job's files come from, if they were imported."""

    training_file: FileOrigin | None
    validation_file: FileOrigin | None


class JobBody(Body):
    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    started_at: int | None
    finished_at: int | None
    training_seconds: float
    attempt_started_at: int | None
    estimated_finish: int | None
    model: str
    model_alias: str | None
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    hyperparameters: LegacyHyperparameters | NoHyperparameters
    method: SupervisedMethod | DpoMethod
    training_file: str
    validation_file: str | None
    file_origins: FileOrigins | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    error: JobError | None
    integrations: list[Any]
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    lora: LoraSpec
    quantization: QuantizationSpec | None
    sample_prompts: list[str]
    progress: Progress | None
    trained_steps: int | None
    total_steps: int | None
    phase: str | None
    pause_requested: bool
    queue_position: int | None
    expected_start: int | None
    waiting_for: str | None
    priority: int
    urgent: bool
    worker_labels: list[str]
    attempts: int
    cloned_from: str | None
    request: dict[str, Any] | None
    warnings: list[WarningBody]
    evaluation: EvaluationOfJob | None
    adapter: AdapterOfJob | None
    compatibility: Compatibility
    deliver_to: list[str]
    deliveries: list[DeliveryOfJob]


class JobList(ListBody):
    data: list[JobBody]


class OrganizationJob(JobBody):
    project_id: str


class OrganizationJobList(ListBody):
    data: list[OrganizationJob]


class JobAttributes(Protocol):
    """The attributes that `render_job` reads, of an ORM row or of a row of the query in app.db.fast_reads.jobs."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def started_at(self) -> datetime | None: ...
    @property
    def finished_at(self) -> datetime | None: ...
    @property
    def training_seconds(self) -> float: ...
    @property
    def attempt_started_at(self) -> datetime | None: ...
    @property
    def base_model(self) -> str: ...
    @property
    def fine_tuned_model(self) -> str | None: ...
    @property
    def state(self) -> str: ...
    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def training_file_id(self) -> str: ...
    @property
    def validation_file_id(self) -> str | None: ...
    @property
    def result_file_ids(self) -> list[str]: ...
    @property
    def trained_tokens(self) -> int | None: ...
    @property
    def error_code(self) -> str | None: ...
    @property
    def error_message(self) -> str | None: ...
    @property
    def error_param(self) -> str | None: ...
    @property
    def user_metadata(self) -> dict[str, Any] | None: ...
    @property
    def suffix(self) -> str | None: ...
    @property
    def progress(self) -> dict[str, Any] | None: ...
    @property
    def desired(self) -> str: ...
    @property
    def phase(self) -> str | None: ...
    @property
    def train_attempts(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def is_urgent(self) -> bool: ...
    @property
    def worker_labels(self) -> list[str]: ...
    @property
    def deliver_to(self) -> list[str]: ...
    @property
    def cloned_from(self) -> str | None: ...
    @property
    def request(self) -> dict[str, Any] | None: ...
    @property
    def warnings(self) -> list[dict[str, Any]]: ...
    @property
    def evaluation(self) -> dict[str, Any] | None: ...
    @property
    def adapter_archive_file_id(self) -> str | None: ...
    @property
    def adapter_sha256(self) -> str | None: ...
    @property
    def adapter_bytes(self) -> int | None: ...


def render_job(
    job: JobAttributes,
    organization: str,
    queue_position: int | None,
    adapter_file_ids: Sequence[str] | None,
    expected_start_at: datetime | None = None,
    waiting_for: str | None = None,
    compatibility: dict[str, Any] | None = None,
    deliveries: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """`compatibility` is that of the result's manifest; without one it follows from the spec."""
    spec = job.spec
    hyperparameters = spec["hyperparameters"]
    method = spec.get("method", "supervised")  # old rows have no method
    progress = job.progress or {}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": unix_seconds(job.created_at),
        "started_at": unix_seconds_or_none(job.started_at),
        "finished_at": unix_seconds_or_none(job.finished_at),
        "training_seconds": round(job.training_seconds, 1),
        "attempt_started_at": unix_seconds_or_none(job.attempt_started_at),
        "estimated_finish": _estimated_finish(job, progress),
        "model": spec.get("continued_from") or job.base_model,
        "model_alias": spec.get("model_alias"),
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": organization,
        "status": job.state,
        "hyperparameters": {k: hyperparameters[k] for k in OPENAI_HYPERPARAMETERS} if method == "supervised" else {},
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "training_file": job.training_file_id,
        "validation_file": job.validation_file_id,
        "file_origins": _file_origins(spec),
        "result_files": job.result_file_ids,
        "trained_tokens": job.trained_tokens,
        "seed": spec["seed"],
        "error": _error(job),
        "integrations": [],
        "metadata": job.user_metadata,
        "user_provided_suffix": job.suffix,
        "lora": spec["lora"],
        "quantization": spec["quantization"],
        "sample_prompts": spec.get("sample_prompts", []),
        "progress": {key: progress.get(key) for key in PROGRESS} if progress else None,
        "trained_steps": progress.get("step"),
        "total_steps": progress.get("total_steps"),
        "phase": job.phase,
        "pause_requested": job.state == JobState.RUNNING and job.desired == Desired.PAUSE,
        "queue_position": queue_position,
        "expected_start": unix_seconds_or_none(expected_start_at),
        "waiting_for": waiting_for,
        "priority": job.priority,
        "urgent": job.is_urgent,
        "worker_labels": job.worker_labels,
        "attempts": job.train_attempts,
        "cloned_from": job.cloned_from,
        "request": job.request,
        "warnings": job.warnings,
        "evaluation": _evaluation(job),
        "adapter": _adapter(job, adapter_file_ids),
        "compatibility": compatibility or job_compatibility(spec, job.id),
        "deliver_to": job.deliver_to,
        "deliveries": list(deliveries or ()),
    }


def _file_origins(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    origins = spec.get("file_origins")
    return {param: origins.get(param) for param in FileOrigins.model_fields} if origins else None


def _estimated_finish(job: JobAttributes, progress: Mapping[str, Any]) -> int | None:
    """The estimate of a running job, else None. The worker's estimate is preferred: it only changes with the row."""
    if job.state != JobState.RUNNING or progress.get("eta_seconds") is None:
        return None
    return int(progress.get("estimated_finish") or time.time() + progress["eta_seconds"])


def _error(job: JobAttributes) -> dict[str, Any] | None:
    """Null for a job without an error. OpenAI sends {}, which is easily mistaken for an error."""
    if job.error_code is None:
        return None
    reason = Reason.of(job.error_code)
    return {
        "code": job.error_code,
        "message": job.error_message or "",
        "param": job.error_param,
        "cause": reason.cause if reason else None,
        "remedy": reason.remedy if reason else None,
    }


def _evaluation(job: JobAttributes) -> dict[str, Any] | None:
    if job.evaluation is not None:
        return {key: job.evaluation[key] for key in EvaluationOfJob.model_fields}
    requested = job.spec.get("evaluation")
    if requested is None or job.state in (JobState.FAILED, JobState.CANCELLED):
        return None
    nothing: dict[str, Any] = dict.fromkeys(EvaluationOfJob.model_fields)
    return nothing | {"status": "requested", "file": requested["file"]}


def _adapter(job: JobAttributes, file_ids: Sequence[str] | None) -> dict[str, Any] | None:
    if job.adapter_sha256 is None:
        return None
    return {
        "files": list(file_ids or ()),
        "archive_file_id": job.adapter_archive_file_id,
        "format": "peft",
        "sha256": job.adapter_sha256,
        "bytes": job.adapter_bytes,
        "base_model": job.base_model,
    }
