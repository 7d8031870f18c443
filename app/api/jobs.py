"""/v1/fine_tuning/jobs: OpenAI's calls, and ours beside them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.api import examples
from app.api.auth import CallerDep
from app.api.bodies import JsonBodyDep
from app.api.deps import Engines, EnginesDep, SessionDep
from app.api.pages import After, Limit, envelope
from app.api.schemas.checkpoints import CheckpointList, render_checkpoint
from app.api.schemas.events import EventList, render_event
from app.api.schemas.job_requests import CreateJob, check_shape, without_effect
from app.api.schemas.jobs import JobBody, JobList, render_job
from app.api.schemas.plans import PlanBody, render_plan
from app.db.engine import transaction
from app.errors import BadRequest, all_at_once
from app.services import jobs, plan
from app.services.jobs import JobRequest, SeenJob

MAX_JOBS = 100
MAX_EVENTS = 1_000
MAX_CHECKPOINTS = 100

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])


@router.post("", response_model=JobBody, summary="Create a job", openapi_extra=examples.CREATE_JOB_BODY)
def create_job(body: JsonBodyDep, caller: CallerDep, session: SessionDep, engines: EnginesDep) -> Any:
    """Answers at once in `validating_files`; what is wrong with the data itself is told by the job."""
    return _render(engines, jobs.create(session, engines.hints, caller.project_id, _job_request(body)))


@router.post("/plan", response_model=PlanBody, summary="Plan a job", openapi_extra=examples.CREATE_JOB_BODY)
def plan_job(body: JsonBodyDep, caller: CallerDep, engines: EnginesDep) -> Any:
    """The body of a create call; nothing is created. Exact tokens and steps, and what it takes on each device."""
    request = _job_request(body)
    with transaction(engines.sessions) as session:
        question = plan.ask(session, caller.project_id, request)
    return render_plan(plan.answer(engines.storage, engines.counter, question))


@router.get("", response_model=JobList, summary="List jobs", openapi_extra=examples.METADATA_FILTER)
def list_jobs(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    engines: EnginesDep,
    after: After = None,
    limit: Limit = 20,
) -> Any:
    """Newest first. `metadata[key]=value` keeps the jobs that have every pair; `metadata=null` those without any."""
    limit = min(limit, MAX_JOBS)
    wanted, without = _metadata_filter(request)
    rows = jobs.page(session, caller.project_id, limit + 1, after, wanted, without)
    return envelope(rows, limit, lambda seen: _render(engines, seen))


@router.post("/{job_id}/cancel", response_model=JobBody, summary="Cancel a job")
def cancel_job(job_id: str, caller: CallerDep, session: SessionDep, engines: EnginesDep) -> Any:
    """At once, in every state that is not final; cancelling a cancelled job answers the same job."""
    return _render(engines, jobs.cancel(session, caller.project_id, job_id))


@router.post("/{job_id}/pause", response_model=JobBody, summary="Pause a job")
def pause_job(job_id: str, caller: CallerDep, session: SessionDep, engines: EnginesDep) -> Any:
    """A queued job at once; a running one leaves a checkpoint at its next step and is `paused` then."""
    return _render(engines, jobs.pause(session, caller.project_id, job_id))


@router.post("/{job_id}/resume", response_model=JobBody, summary="Resume a paused job")
def resume_job(job_id: str, caller: CallerDep, session: SessionDep, engines: EnginesDep) -> Any:
    """Back to `queued`; the next attempt goes on from where the pause left it."""
    return _render(engines, jobs.resume(session, engines.hints, caller.project_id, job_id))


@router.get("/{job_id}/events", response_model=EventList, summary="List events of a job")
def list_events(job_id: str, caller: CallerDep, session: SessionDep, after: After = None, limit: Limit = 20) -> Any:
    """Newest first: what happened, and the metrics of every step."""
    limit = min(limit, MAX_EVENTS)
    return envelope(jobs.event_page(session, caller.project_id, job_id, limit + 1, after), limit, render_event)


@router.get("/{job_id}/checkpoints", response_model=CheckpointList, summary="List checkpoints of a job")
def list_checkpoints(
    job_id: str, caller: CallerDep, session: SessionDep, after: After = None, limit: Limit = 10
) -> Any:
    """Latest step first, the last three. `result_files` are the adapter, `adapter_archive_file_id` all of it in one."""
    limit = min(limit, MAX_CHECKPOINTS)
    rows, best_id = jobs.checkpoint_page(session, caller.project_id, job_id, limit + 1, after)
    return envelope(rows, limit, lambda checkpoint: render_checkpoint(checkpoint, best_id))


def _render(engines: Engines, seen: SeenJob) -> dict[str, Any]:
    return render_job(seen.job, engines.settings.organization, seen.queue_position, seen.adapter_file_ids)


def _job_request(body: dict[str, Any]) -> JobRequest:
    parsed, problems = check_shape(CreateJob, body)
    if parsed is None:
        raise all_at_once(problems)
    return JobRequest(
        model=parsed.model,
        training_file=parsed.training_file,
        validation_file=parsed.validation_file,
        suffix=parsed.suffix,
        metadata=parsed.metadata,
        integrations=parsed.integrations or (),
        body=parsed.model_dump(exclude_unset=True),
        problems=problems,
        warnings=without_effect(parsed),
    )


def _metadata_filter(request: Request) -> tuple[dict[str, str], bool]:
    wanted: dict[str, str] = {}
    without = False
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value != "null":
                text = f"metadata: {value[:60]!r} is not understood; write metadata[key]=value, or metadata=null"
                raise BadRequest(text, "metadata")
            without = True
        elif name.startswith("metadata[") and name.endswith("]"):
            wanted[name.removeprefix("metadata[").removesuffix("]")] = value
    return wanted, without
