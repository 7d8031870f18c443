"""Response bodies of what a job leaves: events, metrics, loss curves, attempts, checkpoints and the adapter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasPath, Field

from app.api.schemas.common import Body, JobPart, UnixTime, WholeList
from app.services.queue import public_worker_id


class EventBody(Body):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: UnixTime
    level: Literal["info", "warn", "error"]
    """The severity."""
    message: str
    """The event in a sentence."""
    type: Literal["message", "metrics"]
    """`metrics` for the metrics of a step, else `message`."""
    data: dict[str, Any]
    """For `metrics`: step, losses, accuracies, learning rate, speed."""


class AttemptBody(Body):
    object: Literal["fine_tuning.job.attempt"] = "fine_tuning.job.attempt"
    attempt: int
    """The number of the attempt; checks and trainings count together."""
    kind: Literal["validate", "train"]
    """`validate` checks the files, `train` trains."""
    worker_id: Annotated[str, AfterValidator(public_worker_id)] = Field(validation_alias="worker")
    """The worker, as in `GET /v1/workers`."""
    gpus: int
    """GPUs that the attempt held."""
    gpu_share: float
    """The share of each GPU that it held: less than 1 in a slot of several."""
    memory_budget_bytes: int | None = Field(validation_alias="budget_bytes")
    """The memory that it reserved on each GPU; null on GPUs that are not shared by several slots."""
    started_at: UnixTime
    """Seconds since 1970."""
    ended_at: UnixTime | None
    """Seconds since 1970; null while it runs."""
    reason: str | None
    """Why it ended (docs/reference/errors.md); null while it runs, and for a successful check."""


class AttemptList(WholeList):
    data: list[AttemptBody]
    """Oldest first."""


class StepMetricsBody(Body):
    """`data` has a row per step, with the keys of its `metrics` event; `total` is the number of all rows."""

    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    fine_tuning_job_id: str
    """The job."""
    total: int
    """The number of all rows; `data` has fewer if `max_points` reduced them."""
    data: list[dict[str, Any]]
    """A row for each step, oldest first, with the keys of its `metrics` event: step, losses, accuracies, learning rate,
    speed.
    """


class LossCurveBody(Body):
    """`steps` and `train_losses` have the same length."""

    object: Literal["fine_tuning.job.loss_curve"] = "fine_tuning.job.loss_curve"
    fine_tuning_job_id: str = Field(validation_alias="job_id")
    """The job."""
    steps: list[int]
    """Evenly spaced steps up to the last one; of a repeated step, the latest run."""
    train_losses: list[float]
    """The training loss of each of these steps."""
    best_valid_loss: float | None
    """The lowest `full_valid_loss` of all steps; null: there was no full validation."""


class LossCurveList(WholeList):
    data: list[LossCurveBody]
    """A curve for each job, in the order of `jobs`."""


class CheckpointBody(JobPart):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    fine_tuned_model_checkpoint: str = Field(validation_alias="name")
    """The `ft:` name; for the result it is the name of the job's model."""
    step_number: int
    best: bool = Field(validation_alias="is_best")
    """Whether it has the lowest full validation loss of the job."""
    metrics: dict[str, float | None]
    """Losses and accuracies at this step; values that were not measured are absent."""
    result_files: list[str] = Field(validation_alias="public_file_ids")
    """Ids of the files of the adapter."""
    adapter_archive_file_id: str = Field(validation_alias="archive_file_id")
    """The files of the adapter as one tar."""


class AdapterFile(Body):
    id: str
    filename: str
    bytes: int
    sha256: str


class AdapterBody(Body):
    """Each file, and `archive`, a tar of all files."""

    object: Literal["fine_tuning.job.adapter"] = "fine_tuning.job.adapter"
    fine_tuning_job_id: str = Field(validation_alias=AliasPath("job", "id"))
    fine_tuned_model: str = Field(validation_alias=AliasPath("checkpoint", "name"))
    base_model: str = Field(validation_alias=AliasPath("job", "base_model"))
    format: Literal["peft"] = "peft"
    """PEFT's format."""
    step_number: int = Field(validation_alias=AliasPath("checkpoint", "step_number"))
    files: list[AdapterFile]
    """All files, to download by id from `/v1/files/{file_id}/content`."""
    archive: AdapterFile
    """All files as one tar."""
