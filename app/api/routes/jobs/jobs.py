"""/v1/fine_tuning/jobs: OpenAI's calls and extensions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.api.auth import Caller, CallerDep
from app.api.dependencies import AppState, AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.openapi import responses
from app.api.routes.jobs.lists import MAX_JOBS, JobFilterDep, job_page
from app.api.schemas.jobs.jobs import JobBody, JobList
from app.api.schemas.jobs.plans import PlanBody
from app.api.schemas.jobs.requests import UpdateJob
from app.api.transport.json_body import JsonBody, JsonBodyDep, RequestBody
from app.api.transport.pagination import After, Limit
from app.db.engine import transaction
from app.db.tables import Job
from app.domain.jobs.create_job import CreateJob
from app.services.datasets.check_process import Check
from app.services.datasets.token_counter import NotCountedError
from app.services.jobs import jobs, plan
from app.services.jobs.jobs import JobRow

CreateJobBody = Annotated[JsonBodyDep, RequestBody(CreateJob)]

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"], route_class=IdempotentRoute)


@router.post("", response_model=JobBody, summary="Create a job")
def create_job(body: CreateJobBody, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Returns at once with the status `validating_files`. Errors in the data itself appear in the job later."""
    # As in a poll without validation by the response model, which takes another thread
    return Response(to_json(create(app_state, session, caller, body)), media_type="application/json")


@router.post("/plan", response_model=PlanBody, summary="Plan a job")
async def plan_job(request: Request, body: CreateJobBody, caller: CallerDep, app_state: AppStateDep) -> Any:
    """Takes the body of a create call and creates nothing. Exact tokens and steps, memory and time on each device."""
    question, answer = await app_state.check_limiter.run_query(
        caller.key_id, partial(_cached_plan, app_state, caller, body)
    )
    if answer is None:
        work = partial(_compute_plan, app_state, question)
        answer = await app_state.check_limiter.run(request, caller.key_id, plan.is_long(question), work)
    return PlanBody.model_validate(answer)


def _cached_plan(
    app_state: AppState, caller: Caller, body: dict[str, Any]
) -> tuple[plan.PlanInputs, plan.JobPlan | None]:
    """The question, and the plan if the token counts of the files are cached."""
    with transaction(app_state.sessions) as session:
        endpoints = app_state.settings.endpoints
        question = plan.read_inputs(session, caller.project_id, caller.is_admin, body, endpoints)
    try:
        return question, _compute_plan(app_state, question, None)
    except NotCountedError:
        return question, None


def _compute_plan(app_state: AppState, question: plan.PlanInputs, check: Check | None) -> plan.JobPlan:
    min_examples = app_state.settings.min_training_examples
    return plan.make_plan(app_state.storage, app_state.token_counter, question, min_examples, check)


@router.get(
    "",
    response_model=JobList,
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
    after: After = None,
    limit: Limit = 20,
) -> Any:
    """Newest first. Each listed job matches all given filters.

    `metadata[key]=value` selects the jobs with every given pair; `metadata=null` selects the jobs without metadata.
    """
    job_filter = replace(job_filter, project_id=caller.project_id)
    return job_page(request, session, app_state, job_filter, after, min(limit, MAX_JOBS))


@router.post("/{job_id}", response_model=JobBody, summary="Change a job")
def update_job(
    job_id: str, body: JsonBody[UpdateJob], caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Any:
    """Change `priority` until the job ends, and `metadata` at any time. An event records the change."""
    given = body.model_dump(exclude_unset=True)
    return body_of(app_state, jobs.change(session, caller.project_id, job_id, given))


@router.post("/{job_id}/cancel", response_model=JobBody, summary="Cancel a job")
def cancel_job(job_id: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Cancels at once, in every state that is not final. Cancelling a cancelled job returns the same job."""
    return body_of(app_state, jobs.cancel(session, caller.project_id, job_id))


@router.post("/{job_id}/pause", response_model=JobBody, summary="Pause a job")
def pause_job(job_id: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Pauses a queued job at once. A running job saves a checkpoint at its next step and becomes `paused` then."""
    return body_of(app_state, jobs.pause(session, caller.project_id, job_id))


@router.post("/{job_id}/resume", response_model=JobBody, summary="Resume a paused job")
def resume_job(job_id: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Returns the job to `queued`; the next attempt resumes where the job was paused."""
    notifier, max_queued_jobs = app_state.worker_notifier, app_state.settings.max_queued_jobs
    return body_of(app_state, jobs.resume(session, notifier, caller.project_id, job_id, max_queued_jobs))


def create(
    app_state: AppState, session: Session, caller: Caller, body: dict[str, Any], original: Job | None = None
) -> dict[str, Any]:
    notifier, settings = app_state.worker_notifier, app_state.settings
    job = jobs.create(session, notifier, caller.project_id, caller.is_admin, body, settings, original)
    return body_of(app_state, job)


def body_of(app_state: AppState, row: JobRow) -> dict[str, Any]:
    return JobBody.of_row(row, app_state.settings.organization)
