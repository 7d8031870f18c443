"""/v1/organization/projects, for admins, and /v1/project: the key's own project, for every key."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.auth import AUTHENTICATED, CallerDep
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.projects import (
    ArchiveProject,
    CreateProject,
    OwnKey,
    OwnProject,
    ProjectBody,
    ProjectList,
    ProjectWithUsage,
    UpdateProject,
    settings_of,
)
from app.api.transport.json_body import JsonBody, OptionalJsonBody
from app.api.transport.pagination import PageDep, list_page
from app.services.access import projects

router = APIRouter(tags=["Projects and keys"], dependencies=[AUTHENTICATED], route_class=IdempotentRoute)


@router.get("/v1/project", response_model=OwnProject, summary="Get the project of this key")
def get_own_project(caller: CallerDep, session: SessionDep) -> Any:
    """Limits and usage of the project, and the scopes of this key. For every key."""
    (project,) = projects.with_usage(session, projects.get(session, caller.project_id))
    key = OwnKey(id=caller.key_id, scopes=list(caller.scopes))
    return OwnProject(**dict(ProjectWithUsage.model_validate(project)), api_key=key)


@router.post(
    "/v1/organization/projects",
    response_model=ProjectBody,
    summary="Create a project",
)
def create_project(body: JsonBody[CreateProject], session: SessionDep) -> Any:
    """A new project has no keys."""
    return projects.create(session, body.name, settings_of(body))


@router.get("/v1/organization/projects", response_model=ProjectList, summary="List projects")
def list_projects(
    session: SessionDep,
    page: PageDep,
    include_archived: bool = False,
    include_usage: Annotated[bool, Query(description="Add the `usage` of each project.")] = False,
) -> Any:
    """Newest first."""
    rows = projects.page(session, page, include_archived)
    return list_page(projects.with_usage(session, *rows) if include_usage else rows, page.limit)


@router.get("/v1/organization/projects/{project_id}", response_model=ProjectWithUsage, summary="Get a project")
def get_project(project_id: str, session: SessionDep) -> Any:
    """A project with its usage."""
    return projects.with_usage(session, projects.get(session, project_id))[0]


@router.post(
    "/v1/organization/projects/{project_id}",
    response_model=ProjectBody,
    summary="Change a project",
)
def update_project(project_id: str, body: JsonBody[UpdateProject], session: SessionDep) -> Any:
    """Change name, limits, weight or permission. A lower limit removes nothing that exists."""
    return projects.change(session, project_id, body.name, settings_of(body))


@router.post(
    "/v1/organization/projects/{project_id}/archive",
    response_model=ProjectBody,
    summary="Archive a project",
)
def archive_project(
    project_id: str, body: OptionalJsonBody[ArchiveProject], caller: CallerDep, session: SessionDep
) -> Any:
    """The keys of an archived project are disabled until it is unarchived. Files and results are kept."""
    return projects.archive(session, project_id, caller.project_id, body.cancel_jobs)


@router.post(
    "/v1/organization/projects/{project_id}/unarchive", response_model=ProjectBody, summary="Unarchive a project"
)
def unarchive_project(project_id: str, session: SessionDep) -> Any:
    """Enable the project and its keys again, except keys that were revoked or have expired."""
    return projects.unarchive(session, project_id)
