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
    """The dotted path of the value, such as `lora.r`."""
    left: Any
    """The value of the job in the path; null: it has none."""
    right: Any
    """The value of the job in `with`; null: it has none."""
    differs: bool
    """Whether the values differ in type or value. A value that is null because the job has not run yet is no
    difference.
    """


class DiffSection(Body):
    differences: int
    """The number of values that differ."""
    values: list[DiffRow]
    """All values that at least one of the jobs has, equal ones included."""


class DiffJob(Body):
    id: str
    status: str
    """The status of the job."""
    fine_tuned_model: str | None
    """The `ft:` name of the result; null until the job has succeeded."""
    training_file: str
    validation_file: str | None
    cloned_from: str | None
    """The job that it was cloned from, or null."""


class DiffBody(Body):
    object: Literal["fine_tuning.job.diff"]
    left: DiffJob
    """The job in the path."""
    right: DiffJob
    """The job in `with`."""
    data: DiffSection
    """The datasets: SHA-256, bytes, rows, tokens."""
    config: DiffSection
    """All resolved parameters."""
    environment: DiffSection
    """The last attempt of each job: device, precision, versions, layout, worker."""
    result: DiffSection
    """Status, losses, tokens, times, memory, adapter."""


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
