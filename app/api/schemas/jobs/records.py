"""Response bodies of the records of a job: events, metrics, loss curves and attempts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from app.api.schemas.common import Body, ListBody, UnixTime
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


class EventList(ListBody):
    data: list[EventBody]


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
    """Why it ended (docs/errors.md); null while it runs, and for a successful check."""


class AttemptList(Body):
    object: Literal["list"] = "list"
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


class LossCurveList(Body):
    object: Literal["list"] = "list"
    data: list[LossCurveBody]
    """A curve for each job, in the order of `jobs`."""
