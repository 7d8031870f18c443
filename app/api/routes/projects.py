"""/v1/organization/projects and API keys, for admins, and /v1/project: the key's own project, for every key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.api.auth import AUTHENTICATED, CallerDep
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import list_of
from app.api.schemas.projects import (
    ArchiveProject,
    CreateKey,
    CreateProject,
    KeyBody,
    KeyRevoked,
    NewKey,
    OwnKey,
    OwnProject,
    ProjectBody,
    ProjectList,
    ProjectWithUsage,
    RotateKey,
    UpdateKey,
    UpdateProject,
    settings_of,
)
from app.api.transport.json_body import JsonBody, OptionalJsonBody
from app.api.transport.pagination import PageDep, list_page
from app.services.access import keys, projects

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


@router.get("/v1/organization/api_keys", response_model=list_of(KeyBody), summary="List the API keys of every project")
def list_all_keys(session: SessionDep, page: PageDep, include_revoked: bool = False) -> Any:
    """Newest first, without their secrets."""
    return list_page(keys.page(session, None, page, include_revoked), page.limit)


@router.post("/v1/organization/projects/{project_id}/api_keys", response_model=NewKey, summary="Create an API key")
def create_key(project_id: str, body: JsonBody[CreateKey], session: SessionDep) -> Any:
    """`value` is the key. No other response contains it."""
    project = projects.get(session, project_id)
    return keys.create(session, project, body.name, body.scopes, body.expires_in_seconds)


@router.get("/v1/organization/projects/{project_id}/api_keys", response_model=list_of(KeyBody), summary="List API keys")
def list_keys(
    project_id: str,
    session: SessionDep,
    page: PageDep,
    include_revoked: bool = False,
    owner_project_access: Annotated[
        Literal["active", "inactive", "any"],
        Query(
            description="Only keys with this `owner_project_access`. Revoked keys require `include_revoked` as well."
        ),
    ] = "any",
) -> Any:
    """Newest first, without their secrets."""
    project = projects.get(session, project_id)
    is_active = None if owner_project_access == "any" else owner_project_access == "active"
    return list_page(keys.page(session, project.id, page, include_revoked, is_active), page.limit)


@router.get(
    "/v1/organization/projects/{project_id}/api_keys/{key_id}", response_model=KeyBody, summary="Get an API key"
)
def get_key(project_id: str, key_id: str, session: SessionDep) -> Any:
    """Status, scopes and last use of a key, without the key itself."""
    return keys.get(session, project_id, key_id)


@router.post(
    "/v1/organization/projects/{project_id}/api_keys/{key_id}", response_model=KeyBody, summary="Change an API key"
)
def update_key(project_id: str, key_id: str, body: JsonBody[UpdateKey], session: SessionDep) -> Any:
    """Change name, scopes or expiry, with effect from the next request."""
    return keys.change(session, project_id, key_id, body.model_dump())


@router.post(
    "/v1/organization/projects/{project_id}/api_keys/{key_id}/rotate",
    response_model=NewKey,
    summary="Rotate an API key",
)
def rotate_key(project_id: str, key_id: str, body: OptionalJsonBody[RotateKey], session: SessionDep) -> Any:
    """A new `value` for the same key. The old one remains valid for a day, or for `overlap_seconds`."""
    return keys.rotate(session, project_id, key_id, body.overlap_seconds)


@router.delete(
    "/v1/organization/projects/{project_id}/api_keys/{key_id}", response_model=KeyRevoked, summary="Revoke an API key"
)
def revoke_key(project_id: str, key_id: str, session: SessionDep) -> Any:
    """The key is invalid at once. Lists with `include_revoked` still contain it."""
    return KeyRevoked(id=keys.revoke(session, project_id, key_id).id)
