"""Base models of the whole service and their aliases, for admins. Names may contain slashes, raw or as %2F."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path

from app.api.auth import AUTHENTICATED
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import Deleted
from app.api.schemas.models import (
    BaseModelRemoved,
    ModelAliasBody,
    ModelAliasList,
    OrganizationBaseModelList,
    RegisterBaseModel,
    RegistrationBody,
    RegistrationList,
    SetModelAlias,
)
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import PageDep, list_page
from app.db.access import audit
from app.db.base_models import models
from app.db.tables import BaseModelRegistration
from app.services import base_models, resources
from app.services import base_models as model_services
from app.system.model_registration import RegistrationOptions

router = APIRouter(
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


@router.get("/base_models", response_model=OrganizationBaseModelList, summary="List base models with their directories")
def list_base_models(session: SessionDep) -> Any:
    """By name. `GET /v1/models` has what users may know."""
    return {"data": models.list_base(session)}


@router.delete("/base_models/{model:path}", response_model=BaseModelRemoved, summary="Remove a base model")
def remove_base_model(model: str, session: SessionDep) -> Any:
    """New jobs cannot use it any more. Its files and the adapters trained on it are kept."""
    if not model:
        raise HTTPException(404)
    base_models.remove(session, model)
    return BaseModelRemoved(id=model)


@router.post(
    "/base_model_registrations",
    response_model=RegistrationBody,
    summary="Register a base model from a directory on the server or from its hub",
)
def register_base_model(body: JsonBody[RegisterBaseModel], session: SessionDep, app_state: AppStateDep) -> Any:
    """A worker with torch checks that the model can be trained, and hashes its files, which takes minutes: read the
    registration until it has ended. A model of the same name is replaced. Without `directory` the worker downloads
    `source` from its hub first, into a directory of its own in `TUNERY_BASE_MODEL_PULL_DIRECTORY`."""
    options = RegistrationOptions(body.learning_rate, body.license, body.source, body.revision)
    settings = app_state.settings
    if body.directory is None:
        row = base_models.pull(session, settings.base_model_pull_directory, body.name, options)
    else:
        allowed = settings.base_model_directories
        row = base_models.register(session, allowed, body.name, body.directory, options)
    app_state.worker_notifier.after_commit(session, "cpu")
    return row


@router.get(
    "/base_model_registrations", response_model=RegistrationList, summary="List the registrations of base models"
)
def list_registrations(session: SessionDep, page: PageDep) -> Any:
    """Newest first."""
    return list_page(resources.page(session, BaseModelRegistration, *page), page.limit)


@router.get(
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
    return model_services.set_alias(session, body.name, body.model)


@aliases.get("", response_model=ModelAliasList, summary="List model aliases")
def list_model_aliases(session: SessionDep) -> Any:
    """By name; also aliases whose base model was removed."""
    return {"data": model_services.list_aliases(session)}


@aliases.delete("/{name:path}", response_model=Deleted, summary="Remove a model alias")
def remove_model_alias(name: str, session: SessionDep) -> Any:
    """Jobs that were created by it are kept."""
    model_services.remove_alias(session, name)
    return Deleted(id=name, object="organization.model_alias")
