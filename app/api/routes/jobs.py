"""/v1/fine_tuning/jobs and, for admins, /v1/organization/jobs: OpenAI's calls and extensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import to_json
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.auth import AUTHENTICATED, Caller, CallerDep, JobDep
from app.api.dependencies import AppState, AppStateDep, SessionDep, app_state_of, hold_connection_permit
from app.api.idempotency import IdempotentRequestDep, IdempotentRoute, respond_once
from app.api.openapi import responses
from app.api.schemas.common import Deleted, UnixSeconds, deleted, list_of, utc_datetime
from app.api.schemas.jobs import CloneJob, CreateGroup, JobBody, JobGroup, OrganizationJob, UpdateJob
from app.api.schemas.plans import DiffBody, PlanBody
from app.api.transport.etags import jobs_etag, json_response, not_modified
from app.api.transport.file_response import matches_etag
from app.api.transport.json_body import (
    JsonBody,
    JsonBodyDep,
    OptionalJsonBodyDep,
    RequestBody,
    read_body,
    read_json_object,
)
from app.api.transport.pagination import PageDep, list_page
from app.db.engine import transaction
from app.db.fast_reads import job_reads
from app.db.fast_reads.job_reads import JobColumn, JobFilter
from app.db.tables import Project
from app.domain.error_text.json_text import as_json
from app.domain.jobs.create_job import MAX_METADATA_PAIRS, CreateJob
from app.domain.jobs.states import JobState
from app.errors import BadRequest
from app.services.datasets.check_process import CheckProcess
from app.services.jobs import diffs, groups, jobs, plan
from app.services.jobs.jobs import JobRow
from app.services.jobs.plan import NotCountedError
from app.services.resources import Page

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
    file: Annotated[
        str | None,
        Query(max_length=200, description="Only jobs that train, validate or are evaluated with the file of this id."),
    ] = None,
    group: Annotated[str | None, Query(max_length=200, description="Only jobs of the group of this id.")] = None,
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
        file_id=file,
        group_id=group,
        order_by=order_by,
        is_ascending=order == "asc",
    )


JobFilterDep = Annotated[JobFilter, Depends(job_filter)]


def job_page(
    request: Request,
    session: Session,
    app_state: AppState,
    job_filter: JobFilter,
    page: Page,
    body: type[JobBody] = JobBody,
) -> Response:
    """The response with a page of jobs, or a 304 if the client has this page already."""
    organization = app_state.settings.organization
    if "if-none-match" in request.headers:
        etag = jobs_etag(organization, jobs.page(session, job_filter, page, job_reads.VERSION))
        if matches_etag(request.headers, etag):
            return not_modified(etag)
    rows = jobs.page(session, job_filter, page)
    bodies = [body.of_row(row, organization) for row in rows]
    return json_response(jobs_etag(organization, rows), list_page(bodies, page.limit))


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


CreateJobBody = Annotated[JsonBodyDep, RequestBody(CreateJob)]

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], route_class=IdempotentRoute)


@router.post("", response_model=JobBody, summary="Create a job")
async def create_job(
    request: Annotated[Request, RequestBody(CreateJob)], caller: CallerDep, idempotent_request: IdempotentRequestDep
) -> Response:
    """Returns at once with the status `validating_files`. Errors in the data itself appear in the job later."""
    # With few dependencies and one thread: those of the other routes take as long as the job itself.
    app_state = app_state_of(request)
    data = await read_body(request, caller)
    body = await read_json_object(request, data)

    def create(session: Session) -> bytes:
        notifier, settings = app_state.worker_notifier, app_state.settings
        row = jobs.create(session, notifier, caller.project_id, caller.is_admin, body, settings)
        return to_json(body_of(app_state, row))

    return await respond_once(request, idempotent_request, data, create)


@router.post("/plan", response_model=PlanBody, summary="Plan a job")
async def plan_job(request: Request, body: CreateJobBody, caller: CallerDep, app_state: AppStateDep) -> Any:
    """Takes the body of a create call and creates nothing. Exact tokens and steps, memory and time on each device."""
    async with hold_connection_permit(request):
        inputs = await run_in_threadpool(_plan_inputs, app_state, caller, body)
    work = partial(_compute_plan, app_state, inputs)
    try:
        answer = await app_state.check_limiter.cache_reads.run(caller.key_id, work, None)
    except NotCountedError:
        answer = await app_state.check_limiter.run(request, caller.key_id, plan.is_long(inputs), work)
    return PlanBody.model_validate(answer)


@router.post("/groups", response_model=JobGroup, summary="Create jobs to compare")
def create_group(body: JsonBody[CreateGroup], caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """A job of each variant of a create body, all or none. They are jobs like others, and share the id of the group.

    Each counts as a request for the rate limit. Without a `seed` they have the same random one.
    """
    app_state.rate_limiter.charge(caller.project_id, len(body.variants) - 1)
    notifier, settings = app_state.worker_notifier, app_state.settings
    group_id, rows = groups.create(
        session, notifier, caller.project_id, caller.is_admin, body.job, body.variants, settings
    )
    return {"id": group_id, "jobs": [body_of(app_state, row) for row in rows]}


def _plan_inputs(app_state: AppState, caller: Caller, body: dict[str, Any]) -> plan.PlanInputs:
    with transaction(app_state.sessions) as session:
        endpoints = app_state.settings.endpoints
        return plan.read_inputs(session, caller.project_id, caller.is_admin, body, endpoints)


def _compute_plan(app_state: AppState, inputs: plan.PlanInputs, check: CheckProcess | None) -> plan.JobPlan:
    min_examples = app_state.settings.min_training_examples
    return plan.make_plan(app_state.storage, app_state.token_counter, inputs, min_examples, check)


@router.get(
    "",
    response_model=list_of(JobBody),
    responses=responses.NOT_MODIFIED,
    summary="List jobs",
    openapi_extra=responses.METADATA_FILTER,
)
def list_jobs(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    app_state: AppStateDep,
    job_filter: JobFilterDep,
    page: PageDep,
) -> Any:
    """Newest first. Each listed job matches all given filters.

    `metadata[key]=value` selects the jobs with every given pair; `metadata=null` selects the jobs without metadata.
    """
    return job_page(request, session, app_state, replace(job_filter, project_id=caller.project_id), page)


@router.post("/{job_id}", response_model=JobBody, summary="Change a job")
def update_job(body: JsonBody[UpdateJob], job: JobDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Change `priority` until the job ends, `suffix` and `metadata` at any time. An event records the change."""
    return body_of(app_state, jobs.change(session, job, body.model_dump(exclude_unset=True)))


@router.delete("/{job_id}", response_model=Deleted, summary="Delete a job")
def delete_job(job: JobDep, session: SessionDep) -> Any:
    """Only of a job that has ended. Its `ft:` models, files, exports and evaluations are deleted with it, and its
    deliveries are withdrawn. The files that it was trained on stay, and the training time counts as before.
    """
    jobs.delete(session, job)
    return deleted(JobBody, job.id)


@router.post("/{job_id}/cancel", response_model=JobBody, summary="Cancel a job")
def cancel_job(job: JobDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Cancels at once, in every state that is not final. Cancelling a cancelled job returns the same job."""
    return body_of(app_state, jobs.cancel(session, job))


@router.post("/{job_id}/pause", response_model=JobBody, summary="Pause a job")
def pause_job(job: JobDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Pauses a queued job at once. A running job saves a checkpoint at its next step and becomes `paused` then."""
    return body_of(app_state, jobs.pause(session, job))


@router.post("/{job_id}/resume", response_model=JobBody, summary="Resume a paused job")
def resume_job(job: JobDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Returns the job to `queued`; the next attempt resumes where the job was paused."""
    max_queued_jobs = app_state.settings.max_queued_jobs
    return body_of(app_state, jobs.resume(session, app_state.worker_notifier, job, max_queued_jobs))


def body_of(app_state: AppState, row: JobRow) -> dict[str, Any]:
    return JobBody.of_row(row, app_state.settings.organization)


CloneJobBody = Annotated[OptionalJsonBodyDep, RequestBody(CloneJob, is_required=False)]


@router.post("/{job_id}/clone", response_model=JobBody, summary="Clone a job")
def clone_job(body: CloneJobBody, job: JobDep, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """A new job with the files, model, seed and all resolved values of the original. The body overrides them."""
    settings = app_state.settings
    clone = jobs.create(session, app_state.worker_notifier, caller.project_id, caller.is_admin, body, settings, job)
    return body_of(app_state, clone)


@router.get("/{job_id}/diff", response_model=DiffBody, summary="Compare two jobs")
def diff_jobs(
    job: JobDep,
    session: SessionDep,
    other: Annotated[str | None, Query(alias="with", description="The job to compare with.")] = None,
) -> Any:
    """Data, configuration, environment and result of both jobs, value by value, with the differences marked."""
    if not other:
        raise BadRequest(
            "you must provide with: the id of the job to compare with", "with", "missing_required_parameter"
        )
    return diffs.compare(session, job, jobs.get(session, job.project_id, other, "with"))


organization = APIRouter(prefix="/v1/organization/jobs", tags=["Projects and keys"], dependencies=[AUTHENTICATED])


@organization.get(
    "",
    response_model=list_of(OrganizationJob),
    responses=responses.NOT_MODIFIED,
    summary="List the jobs of every project",
    openapi_extra=responses.METADATA_FILTER,
)
def list_all_jobs(
    request: Request,
    session: SessionDep,
    app_state: AppStateDep,
    job_filter: JobFilterDep,
    page: PageDep,
    project_id: Annotated[str | None, Query(description="Only jobs of this project.")] = None,
) -> Any:
    """Newest first, each with the id of its project. The filters are those of `GET /v1/fine_tuning/jobs`."""
    if project_id is not None and session.get(Project, project_id) is None:
        raise BadRequest(f"project_id: there is no project {as_json(project_id)}", "project_id")
    job_filter = replace(job_filter, project_id=project_id)
    return job_page(request, session, app_state, job_filter, page, OrganizationJob)
