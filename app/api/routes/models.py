"""/v1/models: what can be tuned, and what has been tuned. Ids may hold slashes, raw or as %2F."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.schemas.common import Deleted
from app.api.schemas.models import ModelBody, ModelList, render_model
from app.services import models

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", response_model=ModelList, response_model_exclude_unset=True, summary="List models")
def list_models(caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """Base models on offer, then the `ft:` models that were trained here or are shared with the project."""
    found = models.list_all(session, caller.project_id)
    return {"object": "list", "data": [render_model(model, app_state.settings.organization) for model in found]}


@router.get("/{model:path}", response_model=ModelBody, response_model_exclude_unset=True, summary="Get a model")
def get_model(model: str, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """A base model says what may be asked of it, an `ft:` model where it comes from."""
    found = models.get(session, caller.project_id, _named(model))
    return render_model(found, app_state.settings.organization)


@router.delete("/{model:path}", response_model=Deleted, summary="Delete a model that was trained here")
def delete_model(model: str, caller: CallerDep, session: SessionDep) -> Any:
    """Base models belong to the operator: deleting one is a 403."""
    models.delete(session, caller.project_id, _named(model))
    return {"id": model, "object": "model", "deleted": True}


def _named(model: str) -> str:
    """A path parameter may be empty, so the list with a slash too many would be a model without a name."""
    if not model:
        raise HTTPException(404)
    return model
