"""/v1/organization/projects/{project_id}/api_keys and /v1/organization/api_keys, for admins."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.api.auth import AUTHENTICATED
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.projects import CreateKey, KeyBody, KeyList, KeyRevoked, NewKey, RotateKey, UpdateKey
from app.api.transport.json_body import JsonBody, OptionalJsonBody
from app.api.transport.pagination import PageDep, list_page
from app.services.access import keys, projects

all_keys = APIRouter(prefix="/v1/organization/api_keys", tags=["Projects and keys"], dependencies=[AUTHENTICATED])
router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/api_keys",
    tags=["Projects and keys"],
    dependencies=[AUTHENTICATED],
    route_class=IdempotentRoute,
)


@all_keys.get("", response_model=KeyList, summary="List the API keys of every project")
def list_all_keys(session: SessionDep, page: PageDep, include_revoked: bool = False) -> Any:
    """Newest first, without their secrets."""
    return list_page(keys.page(session, None, page, include_revoked), page.limit)


@router.post("", response_model=NewKey, summary="Create an API key")
def create_key(project_id: str, body: JsonBody[CreateKey], session: SessionDep) -> Any:
    """`value` is the key. No other response contains it."""
    project = projects.get(session, project_id)
    return keys.create(session, project, body.name, body.scopes, body.expires_in_seconds)


@router.get("", response_model=KeyList, summary="List API keys")
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


@router.get("/{key_id}", response_model=KeyBody, summary="Get an API key")
def get_key(project_id: str, key_id: str, session: SessionDep) -> Any:
    """Status, scopes and last use of a key, without the key itself."""
    return keys.get(session, project_id, key_id)


@router.post("/{key_id}", response_model=KeyBody, summary="Change an API key")
def update_key(project_id: str, key_id: str, body: JsonBody[UpdateKey], session: SessionDep) -> Any:
    """Change name, scopes or expiry, with effect from the next request."""
    return keys.change(session, project_id, key_id, body.model_dump())


@router.post("/{key_id}/rotate", response_model=NewKey, summary="Rotate an API key")
def rotate_key(project_id: str, key_id: str, body: OptionalJsonBody[RotateKey], session: SessionDep) -> Any:
    """A new `value` for the same key. The old one remains valid for a day, or for `overlap_seconds`."""
    return keys.rotate(session, project_id, key_id, body.overlap_seconds)


@router.delete("/{key_id}", response_model=KeyRevoked, summary="Revoke an API key")
def revoke_key(project_id: str, key_id: str, session: SessionDep) -> Any:
    """The key is invalid at once. Lists with `include_revoked` still contain it."""
    return KeyRevoked(id=keys.revoke(session, project_id, key_id).id)
