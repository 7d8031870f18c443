"""The response bodies with the metrics of a job's steps, and with the loss curves of several jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from app.api.schemas.common import Body
from app.db.jobs.events import LossCurve
from app.services.jobs.records import MetricRows


class StepMetricsBody(Body):
    """`data` has a row per step, with the keys of its `metrics` event; `total` is the number of all rows."""

    object: Literal["fine_tuning.job.metrics"]
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

    object: Literal["fine_tuning.job.loss_curve"]
    fine_tuning_job_id: str
    """The job."""
    steps: list[int]
    """Evenly spaced steps up to the last one; of a repeated step, the latest run."""
    train_losses: list[float]
    """The training loss of each of these steps."""
    best_valid_loss: float | None
    """The lowest `full_valid_loss` of all steps; null: there was no full validation."""


class LossCurveList(Body):
    object: Literal["list"]
    data: list[LossCurveBody]
    """A curve for each job, in the order of `jobs`."""


def render_metrics(job_id: str, metrics: MetricRows) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.metrics",
        "fine_tuning_job_id": job_id,
        "total": metrics.total,
        "data": metrics.rows,
    }


def render_loss_curves(curves: Sequence[LossCurve]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [
            {
                "object": "fine_tuning.job.loss_curve",
                "fine_tuning_job_id": curve.job_id,
                "steps": curve.steps,
                "train_losses": curve.train_losses,
                "best_valid_loss": curve.best_valid_loss,
            }
            for curve in curves
        ],
    }
