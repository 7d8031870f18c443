"""The response body of the differences between two jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from app.api.schemas.common import Body
from app.db.tables import Job
from app.domain.jobs.json_diff import ValueDiff, count_differences
from app.services.jobs.diffs import Diff


class DiffRow(Body):
    """`path` is dotted; a value that one of the jobs lacks is null."""

    path: str
    left: Any
    right: Any
    differs: bool


class DiffSection(Body):
    differences: int
    values: list[DiffRow]


class DiffJob(Body):
    id: str
    status: str
    fine_tuned_model: str | None
    training_file: str
    validation_file: str | None
    cloned_from: str | None


class DiffBody(Body):
    object: Literal["fine_tuning.job.diff"]
    left: DiffJob
    right: DiffJob
    data: DiffSection
    config: DiffSection
    environment: DiffSection
    result: DiffSection


def render_diff(diff: Diff) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.diff",
        "left": _job(diff.left),
        "right": _job(diff.right),
        "data": _section(diff.data),
        "config": _section(diff.config),
        "environment": _section(diff.environment),
        "result": _section(diff.result),
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.state,
        "fine_tuned_model": job.fine_tuned_model,
        "training_file": job.training_file_id,
        "validation_file": job.validation_file_id,
        "cloned_from": job.cloned_from,
    }


def _section(rows: Sequence[ValueDiff]) -> dict[str, Any]:
    values = [{"path": row.path, "left": row.left, "right": row.right, "differs": row.differs} for row in rows]
    return {"differences": count_differences(rows), "values": values}
