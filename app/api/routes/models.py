"""/v1/models, for admins base models and their aliases, and which other projects may use an `ft:` model.

Ids and names may contain slashes, raw or as %2F.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query

from app.api.auth import AUTHENTICATED, CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import Deleted, WholeList, deleted, list_of
from app.api.schemas.models import (
    BaseModelRemoved,
    CreatePermissions,
    ModelAliasBody,
    ModelBody,
    OrganizationBaseModel,
    PermissionBody,
    RegisterBaseModel,
    RegistrationBody,
    SetModelAlias,
)
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import PageDep, list_page, paged
from app.db.access import audit
from app.db.base_models import models
from app.db.engine import transaction
from app.db.tables import BaseModelRegistration, TunedModel
from app.services import base_models, resources
from app.services.access import permissions
from app.services.access.permissions import Order
from app.services.resources import Page
from app.system.model_registration import RegistrationOptions

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", response_model=list_of(ModelBody, WholeList), response_model_exclude_none=True, summary="List models")
def list_models(caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Base models, then the `ft:` models that the project has trained or that are shared with it."""
    rows = base_models.list_all(session, caller.project_id)
    return {"data": [ModelBody.of(model, app_state.settings.organization) for model in rows]}


@router.get("/{model:path}", response_model=ModelBody, response_model_exclude_none=True, summary="Get a model")
def get_model(model: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """A base model has its limits, an `ft:` model its base model and its job."""
    row = base_models.get(session, caller.project_id, _require_name(model))
    return ModelBody.of(row, app_state.settings.organization)


@router.delete("/{model:path}", response_model=Deleted, summary="Delete a model that was trained here")
def delete_model(model: str, caller: CallerDep, session: SessionDep) -> Any:
    """Base models belong to the operator: deleting one is a 403."""
    base_models.delete(session, caller.project_id, _require_name(model))
    return deleted(ModelBody, model)


def _require_name(model: str) -> str:
    """Raise 404 for an empty name: the path of the list with an extra slash matches this route."""
    if not model:
        raise HTTPException(404)
    return model


base_model_router = APIRouter(
    prefix="/v1/organization",
    tags=["Base models"],
    dependencies=[AUTHENTICATED],
    route_class=IdempotentRoute,
)
aliases = APIRouter(
    prefix="/v1/organization/model_aliases",
    tags=["Models"],
    dependencies=[AUTHENTICATED],
    route_class=IdempotentRoute,
)


@base_model_router.get(
    "/base_models",
    response_model=list_of(OrganizationBaseModel, WholeList),
    summary="List base models with their directories",
)
def list_base_models(session: SessionDep) -> Any:
    """By name. `GET /v1/models` has what users may know."""
    return {"data": models.list_base(session)}


@base_model_router.delete("/base_models/{model:path}", response_model=BaseModelRemoved, summary="Remove a base model")
def remove_base_model(model: str, session: SessionDep) -> Any:
    """New jobs cannot use it any more. Its files and the adapters trained on it are kept."""
    if not model:
        raise HTTPException(404)
    base_models.remove(session, model)
    return BaseModelRemoved(id=model)


@base_model_router.post(
    "/base_model_registrations",
    response_model=RegistrationBody,
    summary="Register a base model from a directory on the server or from its hub",
)
def register_base_model(body: JsonBody[RegisterBaseModel], session: SessionDep, app_state: AppStateDep) -> Any:
    """A worker with torch checks that the model can be trained, and hashes its files, which takes minutes: read the
    registration until it has ended. A model of the same name is replaced. Without `directory` the worker downloads
    `source` from its hub first, into a directory of its own in `TUNERY_BASE_MODEL_PULL_DIRECTORY`."""
    options = RegistrationOptions(body.learning_rate, body.license, body.source, body.revision)
    directories = app_state.settings.base_model_directories, app_state.settings.base_model_pull_directory
    row = base_models.register(session, *directories, body.name, body.directory, options)
    app_state.worker_notifier.after_commit(session, "cpu")
    return row


@base_model_router.get(
    "/base_model_registrations",
    response_model=list_of(RegistrationBody),
    summary="List the registrations of base models",
)
def list_registrations(session: SessionDep, page: PageDep) -> Any:
    """Newest first."""
    return list_page(resources.page(session, BaseModelRegistration, *page), page.limit)


@base_model_router.get(
    "/base_model_registrations/{registration_id}",
    response_model=RegistrationBody,
    summary="Get the registration of a base model",
)
def get_registration(
    registration_id: Annotated[str, Path(description="The id of the registration.")], session: SessionDep
) -> Any:
    """Its status, what the worker noted, and the reasons if the model was refused."""
    return resources.get(session, BaseModelRegistration, registration_id)


@aliases.post("", response_model=ModelAliasBody, summary="Set a model alias")
def set_model_alias(body: JsonBody[SetModelAlias], session: SessionDep) -> Any:
    """Let another name stand for a base model, for all projects. Replaces an alias of this name."""
    audit.add_object(body.name, None)
    return base_models.set_alias(session, body.name, body.model)


@aliases.get("", response_model=list_of(ModelAliasBody, WholeList), summary="List model aliases")
def list_model_aliases(session: SessionDep) -> Any:
    """By name; also aliases whose base model was removed."""
    return {"data": base_models.list_aliases(session)}


@aliases.delete("/{name:path}", response_model=Deleted, summary="Remove a model alias")
def remove_model_alias(name: str, session: SessionDep) -> Any:
    """Jobs that were created by it are kept."""
    base_models.remove_alias(session, name)
    return deleted(ModelAliasBody, name)


permission_router = APIRouter(
    prefix="/v1/fine_tuning/checkpoints", tags=["Checkpoint permissions"], route_class=IdempotentRoute
)


def find_model(model: str, caller: CallerDep, app_state: AppStateDep) -> TunedModel:
    """Load the model in a separate transaction, so that no connection is held while a client sends its body."""
    with transaction(app_state.sessions) as session:
        return permissions.find_model(session, caller.project_id, caller.is_admin, model)


def find_model_as_admin(model: Annotated[TunedModel, Depends(find_model)], caller: CallerDep) -> TunedModel:
    permissions.require_admin(caller.is_admin)
    return model


ModelDep = Annotated[TunedModel, Depends(find_model)]
AdminModelDep = Annotated[TunedModel, Depends(find_model_as_admin)]


@permission_router.post(
    "/{model:path}/permissions",
    response_model=list_of(PermissionBody),
    summary="Share a checkpoint",
)
def create_permissions(checkpoint: AdminModelDep, body: JsonBody[CreatePermissions], session: SessionDep) -> Any:
    """Allow other projects to see this `ft:` model and to train it further. Requires an admin key, as at OpenAI."""
    rows = permissions.grant(session, checkpoint, body.project_ids)
    return list_page(rows, len(rows))


@permission_router.get(
    "/{model:path}/permissions", response_model=list_of(PermissionBody), summary="List the permissions of a checkpoint"
)
def list_permissions(
    checkpoint: ModelDep,
    session: SessionDep,
    page: Annotated[Page, paged(default=10)],
    order: Annotated[Order, Query(description="Order by creation time.")] = "descending",
    project_id: Annotated[str | None, Query(description="Only the permission of this project.")] = None,
) -> Any:
    """For every key of the project that owns the model; an admin key sees every model."""
    return list_page(permissions.page(session, checkpoint, page, order, project_id), page.limit)


@permission_router.delete(
    "/{model:path}/permissions/{permission_id}", response_model=Deleted, summary="Withdraw a permission on a checkpoint"
)
def delete_permission(permission_id: str, checkpoint: AdminModelDep, session: SessionDep) -> Any:
    """Accepted jobs continue; new ones are refused. Requires an admin key."""
    permissions.withdraw(session, checkpoint, permission_id)
    return deleted(PermissionBody, permission_id)
