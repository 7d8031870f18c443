"""/v1/organization/projects, for admins, and /v1/project, for every key: where it belongs and what is left."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import AUTHENTICATED, CallerDep
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.openapi.examples import organization as examples
from app.api.schemas.jobs.requests import parsed
from app.api.schemas.organization.projects import (
    ArchiveProject,
    CreateProject,
    OwnProject,
    ProjectBody,
    ProjectList,
    ProjectWithUsage,
    UpdateProject,
    render_project,
    render_with_usage,
    settings_of,
)
from app.api.transport.json_body import JsonBodyDep, OptionalJsonBodyDep
from app.api.transport.pagination import After, Limit, list_page
from app.db.access import usage
from app.services.access import projects

MAX_PROJECTS = 100

router = APIRouter(tags=["Projects and keys"], dependencies=[AUTHENTICATED], route_class=IdempotentRoute)


@router.get("/v1/project", response_model=OwnProject, summary="Get the project of this key")
def get_own_project(caller: CallerDep, session: SessionDep) -> Any:
    """Its limits, what is used of them, and what this key may do. Every key may ask."""
    project = projects.get(session, caller.project_id)
    rendered = render_with_usage(project, usage.project_usage(session, project.id))
    return rendered | {"api_key": {"id": caller.key_id, "scopes": list(caller.scopes)}}


@router.post(
    "/v1/organization/projects",
    response_model=ProjectBody,
    summary="Create a project",
    openapi_extra=examples.CREATE_PROJECT_BODY,
)
def create_project(body: JsonBodyDep, session: SessionDep) -> Any:
    """It has no keys yet."""
    asked = parsed(CreateProject, body)
    return render_project(projects.create(session, asked.name, settings_of(asked)))


@router.get("/v1/organization/projects", response_model=ProjectList, summary="List projects")
def list_projects(session: SessionDep, after: After = None, limit: Limit = 20, include_archived: bool = False) -> Any:
    """Newest first."""
    limit = min(limit, MAX_PROJECTS)
    return list_page(projects.page(session, limit + 1, after, include_archived), limit, render_project)


@router.get("/v1/organization/projects/{project_id}", response_model=ProjectWithUsage, summary="Get a project")
def get_project(project_id: str, session: SessionDep) -> Any:
    """With what it uses."""
    project = projects.get(session, project_id)
    return render_with_usage(project, usage.project_usage(session, project.id))


@router.post(
    "/v1/organization/projects/{project_id}",
    response_model=ProjectBody,
    summary="Change a project",
    openapi_extra=examples.UPDATE_PROJECT_BODY,
)
def update_project(project_id: str, body: JsonBodyDep, session: SessionDep) -> Any:
    """Its name, its limits, its weight. A lower limit takes nothing away that is there."""
    asked = parsed(UpdateProject, body)
    return render_project(projects.modify(session, project_id, asked.name, settings_of(asked)))


@router.post(
    "/v1/organization/projects/{project_id}/archive",
    response_model=ProjectBody,
    summary="Archive a project",
    openapi_extra=examples.ARCHIVE_PROJECT_BODY,
)
def archive_project(project_id: str, body: OptionalJsonBodyDep, caller: CallerDep, session: SessionDep) -> Any:
    """Its keys open nothing until it is unarchived. Files and results stay."""
    asked = parsed(ArchiveProject, body)
    return render_project(projects.archive(session, project_id, caller.project_id, asked.cancel_jobs))


@router.post(
    "/v1/organization/projects/{project_id}/unarchive", response_model=ProjectBody, summary="Unarchive a project"
)
def unarchive_project(project_id: str, session: SessionDep) -> Any:
    """Open again, with the keys that it has and that were neither revoked nor have expired."""
    return render_project(projects.unarchive(session, project_id))
