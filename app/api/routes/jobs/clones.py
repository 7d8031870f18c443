"""/v1/fine_tuning/jobs/{id}/clone and /diff: a copy of a job, and the differences between two jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.routes.jobs.jobs import create
from app.api.schemas.jobs import CloneJob, JobBody
from app.api.schemas.plans import DiffBody
from app.api.transport.json_body import OptionalJsonBodyDep, RequestBody
from app.errors import BadRequest
from app.services.jobs import diffs, jobs

CloneJobBody = Annotated[OptionalJsonBodyDep, RequestBody(CloneJob, is_required=False)]

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["Fine-tuning"], route_class=IdempotentRoute)


@router.post("/clone", response_model=JobBody, summary="Clone a job")
def clone_job(job_id: str, body: CloneJobBody, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """A new job with the files, model, seed and all resolved values of the original. The body overrides them."""
    original = jobs.get(session, caller.project_id, job_id)
    return create(app_state, session, caller, body, original)


@router.get("/diff", response_model=DiffBody, summary="Compare two jobs")
def diff_jobs(
    job_id: str,
    caller: CallerDep,
    session: SessionDep,
    other: Annotated[str | None, Query(alias="with", description="The job to compare with.")] = None,
) -> Any:
    """Data, configuration, environment and result of both jobs, value by value, with the differences marked."""
    left = jobs.get(session, caller.project_id, job_id)
    if not other:
        raise BadRequest(
            "you must provide with: the id of the job to compare with", "with", "missing_required_parameter"
        )
    return diffs.compare(session, left, diffs.get_other(session, caller.project_id, other))
