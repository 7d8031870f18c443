"""Bodies of a fine-tuning job: OpenAI's fields and extensions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WrapValidator, create_model

from app.api.schemas.common import Body, LoraBody, Strict, WarningBody, unix_seconds
from app.api.schemas.deliveries import DeliveryOfJob
from app.api.schemas.evaluations import EvaluationError
from app.api.schemas.queue import QueuedFields
from app.domain.artifacts.engines import Compatibility, job_compatibility
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.evaluations.headline import Headline, headline
from app.domain.evaluations.summary import EvaluationSummary
from app.domain.files import FileOrigin
from app.domain.jobs.create_job import MAX_VARIANTS, CreateJob, JobName, Metadata, Priority
from app.domain.jobs.integrations import Integration, WandbSettings
from app.domain.jobs.spec import Hyperparameters, QuantizationSpec
from app.domain.jobs.states import Desired, JobState, Reason
from app.domain.methods import METHODS, Method

AS_SENT = WrapValidator(lambda value, _: value)  # documents the value, and parses nothing


def _all_optional(schema: dict[str, Any]) -> None:
    del schema["required"]
    for name, inner in schema["properties"].items():
        inner.pop("default", None)
        inner["description"] = f"As in a create body; replaces {name} of the original."


class CloneJob(CreateJob):
    """Overrides of the original's values."""

    model_config = ConfigDict(json_schema_extra=_all_optional)  # documents the body, and parses nothing


class CreateGroup(Strict):
    """Jobs to compare: the same create body, with what differs."""

    job: Annotated[CreateJob, AS_SENT]
    """What the jobs share: a create body."""
    variants: Annotated[list[Annotated[CloneJob, AS_SENT]], Field(min_length=1, max_length=MAX_VARIANTS)]
    """A job each: the fields of a create body that replace those of `job`. Objects are merged key by key; {} is the
    job as it is."""


class UpdateJob(Strict):
    """Absent fields keep their values; null restores the default."""

    priority: Priority = None
    """Order among the queued jobs of your project: higher runs first; null: 0. Until the job ends."""
    suffix: JobName = None
    """Another name; null: none. The names of `ft:` models that exist stay."""
    metadata: Metadata | None = None
    """Replaces all pairs of the job; null removes them."""


class ShownWandbRun(WandbSettings):
    run_id: str
    """The id of the run: that of the job."""


class ShownIntegration(Integration):
    wandb: ShownWandbRun | None = None
    """The run at Weights & Biases, with its id; null for another tracker."""


class JobError(Body):
    code: str
    """The reason: see the page of errors."""
    message: str
    param: str | None
    """The field of the request that caused the error, such as `training_file`; null for none."""
    cause: str | None
    """What this code means; null for a code of an earlier version."""
    remedy: str | None
    """What to do about it."""


class LegacyHyperparameters(Body):
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float | None


class NoHyperparameters(Body):
    """OpenAI's older field exists for supervised jobs only; strict clients accept an empty object for other jobs."""


class HyperparametersBody(Body):
    hyperparameters: Hyperparameters


def _method_body(method: Method) -> type[Body]:
    """The body of a method: its type, and its hyperparameters below its name."""
    type_of_method: Any = Annotated[Literal[method.name], Field(description=f"{method.rows.capitalize()}.")]
    hyperparameters: Any = Annotated[HyperparametersBody, Field(description="The hyperparameters.")]
    fields: dict[str, Any] = {"type": (type_of_method, ...), method.name: (hyperparameters, ...)}
    return create_model(f"{method.name.capitalize()}Method", __base__=Body, **fields)


if TYPE_CHECKING:
    JobMethod: TypeAlias = Body
else:
    JobMethod = reduce(or_, map(_method_body, METHODS.values()))


class Progress(Body):
    step: int
    """Optimizer steps done."""
    total_steps: int
    epoch: float | None  # this field and the next two are null before the first step
    """Passes over the data, with a fraction."""
    tokens_per_second: float | None
    """The recent speed."""
    eta_seconds: float | None
    """Seconds until the end."""


class AdapterOfJob(Body):
    """`sha256` and `bytes` are those of the archive."""

    files: list[str]
    """Ids of the files of the adapter."""
    archive_file_id: str
    """All files as one tar: this file, or `/adapter/archive` of the job."""
    format: Literal["peft"]
    """PEFT's format."""
    sha256: str
    """SHA-256 of the archive."""
    bytes: int
    """Size of the archive."""
    base_model: str


class EvaluationOfJob(Body):
    """The newest evaluation of the job; `requested`: it is made when the training has succeeded."""

    id: str | None = None
    """The evaluation; null while it is only requested."""
    status: Literal["requested", "queued", "running", "succeeded", "failed", "cancelled"]
    """Its state; `requested` until the training has succeeded."""
    file: str
    """The file of held-out rows."""
    precision: str | None = None
    """The precision in which the base model answered."""
    headline: Headline | None = None
    """The main result in numbers and in a sentence; null until it has succeeded, and without graders."""
    summary: EvaluationSummary | None = None
    """The result; null until it has succeeded."""
    error: EvaluationError | None = None
    """Why it failed."""


class FileOrigins(Body):
    """Where the job's files come from, if they were imported."""

    training_file: FileOrigin | None
    """The origin of the training file; null: it was not imported."""
    validation_file: FileOrigin | None
    """The origin of the validation file; null: it was not imported, or there is none."""


class JobBody(QueuedFields):
    # `of_row` computes what no column has; `validation_alias` is the name of a column that differs.
    object: Literal["fine_tuning.job"]
    started_at: int | None
    """When training first started, in seconds since 1970; null until then."""
    finished_at: int | None
    """Seconds since 1970; null until the job has ended."""
    training_seconds: float
    """The duration of the training attempts that have ended, without pauses and waits; a running attempt adds the time
    since `attempt_started_at`."""
    attempt_started_at: int | None
    """When the running training attempt started, in seconds since 1970; null while none runs."""
    estimated_finish: int | None
    """Seconds since 1970, while the job runs."""
    model: str
    """The requested model: a base model, or the `ft:` model that the job trains further."""
    model_alias: str | None
    """The name in the request, if it is an alias of the base model; else null."""
    fine_tuned_model: str | None
    """The `ft:` name of the result, once the job has succeeded."""
    organization_id: str
    """The server's name (`TUNERY_ORGANIZATION`)."""
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"] = Field(
        validation_alias="state"
    )
    """OpenAI's statuses, and `paused`."""
    hyperparameters: LegacyHyperparameters | NoHyperparameters
    """OpenAI's older place for three hyperparameters; empty for every method but `supervised`."""
    method: JobMethod
    """The method with the resolved hyperparameters."""
    training_file: str = Field(validation_alias="training_file_id")
    validation_file: str | None = Field(validation_alias="validation_file_id")
    file_origins: FileOrigins | None
    """Where its files come from, if they were imported from another service; else null."""
    result_files: list[str] = Field(validation_alias="result_file_ids")
    """The results file, a CSV with a row per step. The adapter's files are in `adapter`."""
    trained_tokens: int | None
    """Tokens that the model processed, in all epochs; null until the job has ended."""
    seed: int
    error: JobError | None
    """Why the job failed; null in every other state."""
    integrations: list[ShownIntegration]
    """The experiment trackers that get its metrics."""
    metadata: dict[str, str] | None
    user_provided_suffix: str | None = Field(validation_alias="suffix")
    """The `suffix` of the request."""
    lora: LoraBody
    quantization: QuantizationSpec | None
    chat_template_kwargs: ChatTemplateArguments | None
    """Arguments of the base model's chat template; null: none. Requests to an engine that serves the adapter need the
    same.
    """
    sample_prompts: list[str]
    """Prompts that the model answers at every validation."""
    progress: Progress | None
    """The progress, from the start of training on."""
    trained_steps: int | None
    """Optimizer steps done."""
    total_steps: int | None
    phase: str | None
    """The current stage of a running job, finer than `status`. `waiting_for_storage` for a queued job whose last
    attempt found a full disk; it is retried automatically."""
    pause_requested: bool
    """Whether a running job will be `paused` at its next step."""
    queue_position: int | None
    """The position over all projects, forecast every few seconds; 1 is next. Null unless the job is queued."""
    attempts: int = Field(validation_alias="train_attempts")
    """How often training has started: more than once after a pause or a lost worker."""
    cloned_from: str | None
    """The job that it was cloned from; null: it is not a clone."""
    group: str | None = Field(validation_alias="group_id")
    """The group of jobs that one request created with it; null: it was created alone."""
    request: dict[str, Any] | None
    """The body of the request that created the job, as it was sent; of a clone, its changes. Null for a job of an
    earlier release."""
    warnings: list[WarningBody]
    """Problems of the request and, after validation, of the files that do not fail the job but may be unintended."""
    evaluation: EvaluationOfJob | None
    """The newest evaluation of the job; null without one."""
    adapter: AdapterOfJob | None
    """The trained weights, once the job has succeeded."""
    compatibility: Compatibility
    """Which inference engines serve the adapter as it is, and what to do for the others."""
    deliver_to: list[str]
    """The delivery targets that get the adapter when the job has succeeded."""
    deliveries: list[DeliveryOfJob]
    """Where its adapters were or are being delivered, oldest first."""

    @classmethod
    def of_row(cls, row: Any, organization: str) -> dict[str, Any]:
        """The body of a row of `app.db.fast_reads.job_reads.JOB`, not validated, which takes as long as the query."""
        spec = row.spec
        hyperparameters = spec["hyperparameters"]
        method = spec.get("method", "supervised")  # old rows have no method
        progress = row.progress or {}
        computed = {
            "object": "fine_tuning.job",
            "training_seconds": round(row.training_seconds, 1),
            "estimated_finish": _estimated_finish(row.state, progress),
            "model": spec.get("continued_from") or row.base_model,
            "model_alias": spec.get("model_alias"),
            "organization_id": organization,
            "hyperparameters": _fields(LegacyHyperparameters, hyperparameters) if method == "supervised" else {},
            "method": {"type": method, method: {"hyperparameters": hyperparameters}},
            "file_origins": _origins(spec.get("file_origins")),
            "seed": spec["seed"],
            "error": _error(row),
            "integrations": _integrations(row),
            "lora": {"experts": False} | spec["lora"],
            "quantization": spec["quantization"],
            "chat_template_kwargs": spec.get("chat_template_kwargs"),
            "sample_prompts": spec.get("sample_prompts", []),
            "progress": _fields(Progress, progress),
            "trained_steps": progress.get("step"),
            "total_steps": progress.get("total_steps"),
            "pause_requested": row.state == JobState.RUNNING and row.desired == Desired.PAUSE,
            "evaluation": _evaluation(row),
            "adapter": _adapter(row),
            "compatibility": row.manifest_compatibility or job_compatibility(spec, row.id),
            "deliveries": row.deliveries or [],
        }
        return {name: computed[name] if name in computed else _column(row, column) for name, column in _columns(cls)}


class JobGroup(Body):
    id: str
    object: Literal["fine_tuning.job.group"] = "fine_tuning.job.group"
    jobs: list[JobBody]
    """The jobs, in the order of `variants`."""


class OrganizationJob(JobBody):
    project_id: str


def _estimated_finish(state: str, progress: Mapping[str, Any]) -> int | None:
    """The estimate of a running job, else None. The worker's estimate is preferred: it only changes with the row."""
    if state != JobState.RUNNING or progress.get("eta_seconds") is None:
        return None
    return int(progress.get("estimated_finish") or time.time() + progress["eta_seconds"])


def _error(row: Any) -> dict[str, Any] | None:
    """Null for a job without an error. OpenAI sends {}, which is easily mistaken for an error."""
    if row.error_code is None:
        return None
    reason = Reason.of(row.error_code)
    return {
        "code": row.error_code,
        "message": row.error_message or "",
        "param": row.error_param,
        "cause": reason.cause if reason else None,
        "remedy": reason.remedy if reason else None,
    }


def _evaluation(row: Any) -> dict[str, Any] | None:
    if row.evaluation is not None:
        found = headline(row.evaluation["summary"])
        shown = {"headline": found.model_dump(mode="json") if found else None}
        return (_fields(EvaluationOfJob, row.evaluation) or {}) | shown
    requested = row.spec.get("evaluation")
    if requested is None or row.state in (JobState.FAILED, JobState.CANCELLED):
        return None
    return _fields(EvaluationOfJob, {"status": "requested", "file": requested["file"]})


def _integrations(row: Any) -> list[dict[str, Any]]:
    """With the id of the run at Weights & Biases, as OpenAI returns it; MLflow's server makes its own ids."""
    return [
        each if each["type"] != "wandb" else {"type": "wandb", "wandb": each["wandb"] | {"run_id": row.id}}
        for each in row.integrations or ()
    ]


def _adapter(row: Any) -> dict[str, Any] | None:
    if row.adapter_sha256 is None:
        return None
    return {
        "files": row.adapter_file_ids or [],
        "archive_file_id": row.adapter_archive_file_id,
        "format": "peft",
        "sha256": row.adapter_sha256,
        "bytes": row.adapter_bytes,
        "base_model": row.base_model,
    }


@cache
def _columns(body: type[Body]) -> list[tuple[str, str]]:
    """(field, column) of each field."""
    return [(name, str(field.validation_alias or name)) for name, field in body.model_fields.items()]


def _column(row: Any, name: str) -> Any:
    value = getattr(row, name)
    return unix_seconds(value) if isinstance(value, datetime) else value


def _origins(stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The origin of each file with all its fields; what is stored has only those that were given."""
    return {name: _fields(FileOrigin, stored.get(name)) for name in FileOrigins.model_fields} if stored else None


def _fields(body: type[BaseModel], stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The fields of a body, of a stored object that may have more or fewer; None if it is empty."""
    return {name: stored.get(name) for name in body.__pydantic_fields__} if stored else None
