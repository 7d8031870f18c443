"""Use cases of models: registered base models, and `ft:` models. The caller owns the transaction."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db import models
from app.db.deliveries import deliveries
from app.db.tables import BaseModelRow, TunedModel
from app.domain.error_text.json_text import as_json
from app.errors import NotFound, NotPermitted

ModelRow = BaseModelRow | TunedModel


def list_all(session: Session, project_id: str) -> list[ModelRow]:
    return [*models.list_base(session, project_id), *models.list_usable(session, project_id)]


def get(session: Session, project_id: str, model_id: str) -> ModelRow:
    model = models.get_base(session, project_id, model_id) or models.get_usable(session, project_id, model_id)
    if model is None:
        raise NotFound(
            f"The model {as_json(model_id)} does not exist; GET /v1/models lists those that do.",
            "model",
            "model_not_found",
        )
    return model


def delete(session: Session, project_id: str, model_id: str) -> None:
    """Delete an `ft:` model and withdraw its deliveries; its files stay. Raises NotFound, NotPermitted."""
    model = get(session, project_id, model_id)
    if isinstance(model, BaseModelRow):
        raise NotPermitted(
            f"{as_json(model_id)} is a base model; only the operator can remove it "
            f"(`tunery models remove {model_id}`).",
            "model",
        )
    if model.project_id != project_id:
        text = (
            f"{as_json(model_id)} belongs to another project, which shares it with yours; only its owner can delete it."
        )
        raise NotPermitted(text, "model")
    models.delete_tuned(session, model)
    deliveries.withdraw_model(session, model.id)
