"""Share an `ft:` model with other projects, which may then list it and continue its training.

An admin key belongs to the operator, as OpenAI's admin keys to the owner of an organization: it shares the models of
all projects. Other keys only list the permissions of their own project's models.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.access import permissions
from app.db.access.permissions import Order
from app.db.base_models import models
from app.db.tables import CheckpointPermission, TunedModel
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound, NotPermitted


def find_model(session: Session, project_id: str, is_admin: bool, name: str) -> TunedModel:
    """An `ft:` model of the project, for an admin of any project. Raises NotFound."""
    model = models.get_tuned_of_any_project(session, name) if is_admin else models.get_tuned(session, project_id, name)
    if model is None:
        raise NotFound(
            f"The checkpoint {as_json(name)} does not exist; GET /v1/models lists the `ft:` models that do.",
            "fine_tuned_model_checkpoint",
            "model_not_found",
        )
    return model


def require_admin(is_admin: bool) -> None:
    """Raises NotPermitted."""
    if not is_admin:
        raise NotPermitted("Sharing a model with other projects takes an admin key; ask the operator of this server.")


def grant(session: Session, model: TunedModel, project_ids: Sequence[str]) -> list[CheckpointPermission]:
    """Grant the permission to projects. Raises NotFound for unknown projects, BadRequest for the model's own."""
    existing = permissions.existing_project_ids(session, project_ids)
    unknown = [project_id for project_id in project_ids if project_id not in existing]
    if unknown:
        raise NotFound(f"No such project: {', '.join(dict.fromkeys(map(unquoted, unknown)))}", "project_ids")
    if model.project_id in project_ids:
        text = f"project_ids: {model.project_id} owns {as_json(model.id)} and needs no permission; leave it out"
        raise BadRequest(text, "project_ids")
    return permissions.grant(session, model, project_ids)


def page(
    session: Session, model: TunedModel, limit: int, after: str | None, order: Order, project_id: str | None
) -> list[CheckpointPermission]:
    last = None
    if after is not None:
        last = permissions.get(session, model, after)
        if last is None:
            text = f"after: no permission has the id {as_json(after)}; give the last id of the previous page"
            raise BadRequest(text, "after")
    return permissions.page(session, model, limit, last, order, project_id)


def withdraw(session: Session, model: TunedModel, permission_id: str) -> None:
    """Withdraw a permission: new jobs are refused, accepted ones continue. Raises NotFound."""
    permission = permissions.get(session, model, permission_id)
    if permission is None:
        raise NotFound(f"No such permission: {unquoted(permission_id)}", "permission_id")
    permissions.withdraw(session, permission)
