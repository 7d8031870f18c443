"""/v1/organization/model_aliases, for admins. Names may contain slashes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import AUTHENTICATED
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import Deleted
from app.api.schemas.organization.model_aliases import ModelAliasBody, ModelAliasList, SetModelAlias
from app.api.transport.json_body import JsonBody
from app.db.access import audit
from app.services.base_models import models

router = APIRouter(
    prefix="/v1/organization/model_aliases",
    tags=["Models"],
    dependencies=[AUTHENTICATED],
    route_class=IdempotentRoute,
)


@router.post("", response_model=ModelAliasBody, summary="Set a model alias")
def set_model_alias(body: JsonBody[SetModelAlias], session: SessionDep) -> Any:
    """Let another name stand for a base model, for all projects. Replaces an alias of this name."""
    audit.add_object(body.name, None)
    return models.set_alias(session, body.name, body.model)


@router.get("", response_model=ModelAliasList, summary="List model aliases")
def list_model_aliases(session: SessionDep) -> Any:
    """By name; also aliases whose base model was removed."""
    return {"data": models.list_aliases(session)}


@router.delete("/{name:path}", response_model=Deleted, summary="Remove a model alias")
def remove_model_alias(name: str, session: SessionDep) -> Any:
    """Jobs that were created by it are kept."""
    models.remove_alias(session, name)
    return Deleted(id=name, object="organization.model_alias")
