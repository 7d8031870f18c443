"""Request bodies: the base of those whose shape is all there is to check, and the update of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict

from app.api.schemas.common import Body
from app.domain.error_text.validation_text import Parsed, check_shape
from app.domain.jobs.create_job import CreateJob, Metadata, Priority
from app.errors import combine_errors


class Strict(Body):
    """Strict JSON types: "7" is not a number, and 7 is not text."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _all_optional(schema: dict[str, Any]) -> None:
    del schema["required"]
    for name, inner in schema["properties"].items():
        inner.pop("default", None)
        inner["description"] = f"As in a create body; replaces {name} of the original."


class CloneJob(CreateJob):
    """Overrides of the original's values."""

    model_config = ConfigDict(json_schema_extra=_all_optional)  # documents the body, and parses nothing


class UpdateJob(Strict):
    """Absent fields keep their values; null restores the default."""

    priority: Priority = None
    """Order among the queued jobs of your project: higher runs first; null: 0. Until the job ends."""
    metadata: Metadata | None = None
    """Replaces all pairs of the job; null removes them."""


def parse_body(model: type[Parsed], body: Mapping[str, Any]) -> Parsed:
    """Parse a body whose shape is all there is to check. Raises BadRequest with all problems."""
    parsed, problems = check_shape(model, body)
    if parsed is None or problems:
        raise combine_errors(problems)
    return parsed
