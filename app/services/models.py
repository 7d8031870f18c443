"""Base models on offer and `ft:` models trained here."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db import models
from app.db.tables import BaseModelRow, TunedModel
from app.domain.error_text.json_text import as_json
from app.errors import NotFound, NotPermitted

ModelRow = BaseModelRow | TunedModel


def list_all(session: Session, project_id: str) -> list[ModelRow]:
    return [*models.list_base(session, project_id), *models.list_usable(session, project_id)]


def get(session: Session, project_id: str, model_id: str) -> ModelRow:
    found = models.get_base(session, project_id, model_id) or models.get_usable(session, project_id, model_id)
    if found is None:
        raise NotFound(
            f"The model {as_json(model_id)} does not exist; GET /v1/models lists those that do.",
            "model",
            "model_not_found",
        )
    return found


def delete(session: Session, project_id: str, model_id: str) -> None:
    """Forget an `ft:` model. Its files are deleted one by one, if that is wanted."""
    found = get(session, project_id, model_id)
    if isinstance(found, BaseModelRow):
        raise NotPermitted(
            f"{as_json(model_id)} is a base model: the operator removes it (`tunery models remove {model_id}`).",
            "model",
        )
    if found.project_id != project_id:
        raise NotPermitted(f"{as_json(model_id)} belongs to another project, which shares it with yours.", "model")
    models.delete_tuned(session, found)
