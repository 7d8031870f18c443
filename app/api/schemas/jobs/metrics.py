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
    total: int
    data: list[dict[str, Any]]


class LossCurveBody(Body):
    """`steps` and `train_losses` have the same length."""

    object: Literal["fine_tuning.job.loss_curve"]
    fine_tuning_job_id: str
    steps: list[int]
    train_losses: list[float]
    best_valid_loss: float | None


class LossCurveList(Body):
    object: Literal["list"]
    data: list[LossCurveBody]


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
