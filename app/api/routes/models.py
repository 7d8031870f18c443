"""/v1/models: base models and fine-tuned models. Ids may contain slashes, raw or as %2F."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.schemas.common import Deleted
from app.api.schemas.models import ModelBody, ModelList
from app.services import base_models

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", response_model=ModelList, response_model_exclude_none=True, summary="List models")
def list_models(caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Base models, then the `ft:` models that the project has trained or that are shared with it."""
    rows = base_models.list_all(session, caller.project_id)
    return ModelList(data=[ModelBody.of(model, app_state.settings.organization) for model in rows])


@router.get("/{model:path}", response_model=ModelBody, response_model_exclude_none=True, summary="Get a model")
def get_model(model: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """A base model has its limits, an `ft:` model its base model and its job."""
    row = base_models.get(session, caller.project_id, _require_name(model))
    return ModelBody.of(row, app_state.settings.organization)


@router.delete("/{model:path}", response_model=Deleted, summary="Delete a model that was trained here")
def delete_model(model: str, caller: CallerDep, session: SessionDep) -> Any:
    """Base models belong to the operator: deleting one is a 403."""
    base_models.delete(session, caller.project_id, _require_name(model))
    return Deleted(id=model, object="model")


def _require_name(model: str) -> str:
    """Raise 404 for an empty name: the path of the list with an extra slash matches this route."""
    if not model:
        raise HTTPException(404)
    return model
