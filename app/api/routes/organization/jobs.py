"""/v1/organization/jobs, for admins: the jobs of every project."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from app.api.auth import AUTHENTICATED
from app.api.dependencies import AppStateDep, SessionDep
from app.api.openapi import responses
from app.api.routes.jobs.lists import MAX_JOBS, JobFilterDep, job_page
from app.api.schemas.jobs import OrganizationJob, OrganizationJobList
from app.api.transport.pagination import After, Limit
from app.services.jobs import jobs

router = APIRouter(prefix="/v1/organization/jobs", tags=["Projects and keys"], dependencies=[AUTHENTICATED])


@router.get(
    "",
    response_model=OrganizationJobList,
    responses=responses.NOT_MODIFIED,
    summary="List the jobs of every project",
    openapi_extra=responses.METADATA_FILTER,
)
def list_all_jobs(
    request: Request,
    session: SessionDep,
    app_state: AppStateDep,
    job_filter: JobFilterDep,
    after: After = None,
    limit: Limit = 20,
    project_id: Annotated[str | None, Query(description="Only jobs of this project.")] = None,
) -> Any:
    """Newest first, each with the id of its project. The filters are those of `GET /v1/fine_tuning/jobs`."""
    if project_id is not None:
        jobs.require_project(session, project_id)
    job_filter = replace(job_filter, project_id=project_id)
    return job_page(request, session, app_state, job_filter, after, min(limit, MAX_JOBS), OrganizationJob)
