"""A body whose shape was checked -> the request that the service takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.api.schemas.jobs.requests import CreateJob, UpdateJob, check_shape, without_effect
from app.db.tables import Job
from app.domain.jobs.cloning import apply_overrides, create_request
from app.domain.jobs.spec import JobSpec
from app.errors import BadRequest, combine_errors
from app.services.jobs.requests import JobRequest, SchedulingOptions


def job_request(body: Mapping[str, Any]) -> JobRequest:
    """Raises BadRequest where nothing of the body is usable."""
    parsed, problems = check_shape(CreateJob, body)
    if parsed is None:
        raise combine_errors(problems)
    return _request(parsed, parsed.model_dump(exclude_unset=True), problems, sent_body=body)


def clone_request(job: Job, overrides: Mapping[str, Any]) -> JobRequest:
    """The request that asks for `job` again, but for `overrides`: any key of a create body."""
    original = create_request(
        JobSpec.model_validate(job.spec), job.training_file_id, job.validation_file_id, job.suffix, job.user_metadata
    )
    original |= {"priority": job.priority, "urgent": job.is_urgent, "worker_labels": job.worker_labels}
    original["deliver_to"] = job.deliver_to
    required = {name: original[name] for name in ("model", "training_file")}
    parsed, problems = check_shape(CreateJob, required | dict(overrides))
    if parsed is None:
        raise combine_errors(problems)
    given = {key: value for key, value in parsed.model_dump(exclude_unset=True).items() if key in overrides}
    body = apply_overrides(original, given)
    parsed, more = check_shape(CreateJob, body)
    if parsed is None:
        raise combine_errors([*problems, *more])
    return _request(parsed, body, [*problems, *more], sent_body=overrides, cloned_from=job.id)


def job_changes(body: UpdateJob) -> dict[str, Any]:
    """{column: value} of what an update gives."""
    changes: dict[str, Any] = {"priority": body.priority or 0, "user_metadata": body.metadata}
    given = {"user_metadata" if name == "metadata" else name for name in body.model_fields_set}
    return {column: value for column, value in changes.items() if column in given}


def _request(
    parsed: CreateJob,
    body: dict[str, Any],
    problems: list[BadRequest],
    sent_body: Mapping[str, Any],
    cloned_from: str | None = None,
) -> JobRequest:
    return JobRequest(
        model=parsed.model,
        training_file=parsed.training_file,
        validation_file=parsed.validation_file,
        suffix=parsed.suffix,
        metadata=parsed.metadata,
        integrations=parsed.integrations or (),
        body=body,
        sent_body=sent_body,
        problems=problems,
        scheduling=SchedulingOptions(
            parsed.priority or 0, parsed.urgent or False, sorted(set(parsed.worker_labels or ()))
        ),
        deliver_to=parsed.deliver_to,
        cloned_from=cloned_from,
        warnings=without_effect(parsed),
    )
