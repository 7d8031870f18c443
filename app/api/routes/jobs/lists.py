"""Lists of jobs: their common filters, and a page with its ETag."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import Depends, Query, Request
from pydantic import AfterValidator, WithJsonSchema
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.api.dependencies import AppState
from app.api.schemas.common import UnixSeconds, utc_datetime
from app.api.schemas.jobs import JobBody
from app.api.transport.etags import jobs_etag, json_response, not_modified
from app.api.transport.file_response import matches_etag
from app.api.transport.pagination import list_page
from app.db.jobs.reads import JobColumn, JobFilter
from app.domain.error_text.json_text import as_json
from app.domain.jobs.create_job import MAX_METADATA_PAIRS
from app.domain.jobs.states import JobState
from app.errors import BadRequest
from app.services.jobs import jobs

MAX_JOBS = 100
STATUSES = [state.value for state in JobState]


def _check_statuses(values: Sequence[str]) -> list[str]:
    """The statuses of a filter, also separated by commas. Raises ValueError, which FastAPI turns into a 400."""
    statuses = list(dict.fromkeys(word.strip() for value in values for word in value.split(",")))
    if not set(statuses) <= set(STATUSES):
        raise ValueError(f"each must be one of {', '.join(STATUSES)}")
    return statuses


Statuses = Annotated[
    list[str],
    AfterValidator(_check_statuses),
    WithJsonSchema({"type": "array", "items": {"type": "string", "enum": STATUSES}}),
]


async def job_filter(
    request: Request,
    status: Annotated[
        Statuses,
        Query(
            description="Only jobs with one of these statuses; repeat the parameter or separate the statuses by commas."
        ),
    ] = [],  # noqa: B006  (FastAPI copies it)
    status_in_brackets: Annotated[Statuses, Query(alias="status[]", include_in_schema=False)] = [],  # noqa: B006
    created_after: Annotated[
        UnixSeconds | None, Query(description="Only jobs with a later `created_at`, in seconds since 1970.")
    ] = None,
    created_before: Annotated[
        UnixSeconds | None, Query(description="Only jobs with an earlier `created_at`, in seconds since 1970.")
    ] = None,
    search: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Only jobs with this text in their id, suffix, model, `ft:` name or name of the training file; "
            "upper and lower case are the same.",
        ),
    ] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="`desc`: newest first; `asc`: oldest first.")] = "desc",
    order_by: Annotated[
        JobColumn,
        Query(
            description="The value by which `order` sorts: `name` is the suffix, `train_loss` that of the last step, "
            "`valid_loss` that of the best checkpoint, `duration` the time of the training attempts. Jobs "
            "without the value are last."
        ),
    ] = "created_at",
) -> JobFilter:
    """The filter of a request. Times are compared in whole seconds, as jobs show them.

    The official client sends a list as `status[]`.
    """
    metadata, without_metadata = _metadata_filter(request)
    return JobFilter(
        states=[*status, *status_in_brackets],
        created_from=None if created_after is None else utc_datetime(created_after) + timedelta(seconds=1),
        created_until=None if created_before is None else utc_datetime(created_before),
        metadata=metadata,
        without_metadata=without_metadata,
        search=search,
        order_by=order_by,
        is_ascending=order == "asc",
    )


JobFilterDep = Annotated[JobFilter, Depends(job_filter)]


def job_page(
    request: Request,
    session: Session,
    app_state: AppState,
    job_filter: JobFilter,
    after: str | None,
    limit: int,
    body: type[JobBody] = JobBody,
) -> Response:
    """The response with a page of jobs, or a 304 if the client has this page already."""
    organization = app_state.settings.organization
    if "if-none-match" in request.headers:
        etag = jobs_etag(organization, jobs.page(session, job_filter, limit + 1, after, versions_only=True))
        if matches_etag(request.headers, etag):
            return not_modified(etag)
    rows = jobs.page(session, job_filter, limit + 1, after)
    return json_response(
        jobs_etag(organization, rows), list_page([body.of_row(row, organization) for row in rows], limit)
    )


def _metadata_filter(request: Request) -> tuple[dict[str, str], bool]:
    pairs: dict[str, str] = {}
    without_metadata = False
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value != "null":
                text = f"metadata: {as_json(value)} is not supported; write metadata[key]=value, or metadata=null"
                raise BadRequest(text, "metadata")
            without_metadata = True
        elif name.startswith("metadata["):
            if not name.endswith("]"):
                raise BadRequest(f"{as_json(name)} is not supported; write metadata[key]=value", "metadata")
            pairs[name.removeprefix("metadata[").removesuffix("]")] = value
    if len(pairs) > MAX_METADATA_PAIRS:
        text = f"metadata: {len(pairs):,} pairs given; a job has at most {MAX_METADATA_PAIRS}"
        raise BadRequest(text, "metadata")
    if pairs and without_metadata:
        raise BadRequest("metadata: null and metadata[key]=value exclude each other; give one of them", "metadata")
    return pairs, without_metadata
