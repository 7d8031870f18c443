"""The response body with the metrics of a job's steps."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body
from app.services.jobs.records import MetricRows


class StepMetricsBody(Body):
    """`data` has a row per step, with the keys of its `metrics` event; `total` is the number of all rows."""

    object: Literal["fine_tuning.job.metrics"]
    fine_tuning_job_id: str
    total: int
    data: list[dict[str, Any]]


def render_metrics(job_id: str, metrics: MetricRows) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.metrics",
        "fine_tuning_job_id": job_id,
        "total": metrics.total,
        "data": metrics.rows,
    }
