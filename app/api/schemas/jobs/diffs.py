"""The response body of the differences between two jobs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.api.schemas.common import Body


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
    status: str = Field(validation_alias="state")
    """The status of the job."""
    fine_tuned_model: str | None
    """The `ft:` name of the result; null until the job has succeeded."""
    training_file: str = Field(validation_alias="training_file_id")
    validation_file: str | None = Field(validation_alias="validation_file_id")
    cloned_from: str | None
    """The job that it was cloned from, or null."""


class DiffBody(Body):
    object: Literal["fine_tuning.job.diff"] = "fine_tuning.job.diff"
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
