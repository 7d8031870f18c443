"""/v1/organization/projects, for admins, and /v1/project: the key's own project, for every key."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.auth import AUTHENTICATED, CallerDep
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
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
from app.api.transport.json_body import JsonBody, OptionalJsonBody
from app.api.transport.pagination import After, Limit, list_page
from app.db.access import usage
from app.services.access import projects

MAX_PROJECTS = 100

router = APIRouter(tags=["Projects and keys"], dependencies=[AUTHENTICATED], route_class=IdempotentRoute)


@router.get("/v1/project", response_model=OwnProject, summary="Get the project of this key")
def get_own_project(caller: CallerDep, session: SessionDep) -> Any:
    """Limits and usage of the project, and the scopes of this key. For every key."""
    project = projects.get(session, caller.project_id)
    rendered = render_with_usage(project, usage.project_usage(session, project.id))
    return rendered | {"api_key": {"id": caller.key_id, "scopes": list(caller.scopes)}}


@router.post(
    "/v1/organization/projects",
    response_model=ProjectBody,
    summary="Create a project",
)
def create_project(body: JsonBody[CreateProject], session: SessionDep) -> Any:
    """A new project has no keys."""
    return render_project(projects.create(session, body.name, settings_of(body)))


@router.get("/v1/organization/projects", response_model=ProjectList, summary="List projects")
def list_projects(
    session: SessionDep,
    after: After = None,
    limit: Limit = 20,
    include_archived: bool = False,
    include_usage: Annotated[bool, Query(description="Add the `usage` of each project.")] = False,
) -> Any:
    """Newest first."""
    limit = min(limit, MAX_PROJECTS)
    rows = projects.page(session, limit + 1, after, include_archived)
    if not include_usage:
        return list_page(rows, limit, render_project)
    used = usage.usage_by_project(session, [row.id for row in rows])
    return list_page(rows, limit, lambda row: render_with_usage(row, used[row.id]))


@router.get("/v1/organization/projects/{project_id}", response_model=ProjectWithUsage, summary="Get a project")
def get_project(project_id: str, session: SessionDep) -> Any:
    """A project with its usage."""
    project = projects.get(session, project_id)
    return render_with_usage(project, usage.project_usage(session, project.id))


@router.post(
    "/v1/organization/projects/{project_id}",
    response_model=ProjectBody,
    summary="Change a project",
)
def update_project(project_id: str, body: JsonBody[UpdateProject], session: SessionDep) -> Any:
    """Change name, limits, weight or permission. A lower limit removes nothing that exists."""
    return render_project(projects.modify(session, project_id, body.name, settings_of(body)))


@router.post(
    "/v1/organization/projects/{project_id}/archive",
    response_model=ProjectBody,
    summary="Archive a project",
)
def archive_project(
    project_id: str, body: OptionalJsonBody[ArchiveProject], caller: CallerDep, session: SessionDep
) -> Any:
    """The keys of an archived project are disabled until it is unarchived. Files and results are kept."""
    return render_project(projects.archive(session, project_id, caller.project_id, body.cancel_jobs))


@router.post(
    "/v1/organization/projects/{project_id}/unarchive", response_model=ProjectBody, summary="Unarchive a project"
)
def unarchive_project(project_id: str, session: SessionDep) -> Any:
    """Enable the project and its keys again, except keys that were revoked or have expired."""
    return render_project(projects.unarchive(session, project_id))
