"""Share an `ft:` model with other projects, which may then list it and continue its training.

An admin key belongs to the operator, as OpenAI's admin keys to the owner of an organization: it shares the models of
all projects. Other keys only list the permissions of their own project's models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import CheckpointPermission, Project, TunedModel
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound, NotPermitted
from app.services import resources
from app.services.resources import Page

Order = Literal["ascending", "descending"]


def find_model(session: Session, project_id: str, is_admin: bool, name: str) -> TunedModel:
    """An `ft:` model of the project, for an admin of any project. Raises NotFound."""
    query = select(TunedModel).where(TunedModel.id == name, TunedModel.deleted_at.is_(None))
    model = session.scalar(query if is_admin else query.where(TunedModel.project_id == project_id))
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
    """Grant the permission to projects that lack it. Returns those of all, in the order of `project_ids`.

    Raises NotFound for unknown projects, BadRequest for the model's own.
    """
    existing = set(session.scalars(select(Project.id).where(Project.id.in_(project_ids))))
    unknown = [project_id for project_id in project_ids if project_id not in existing]
    if unknown:
        raise NotFound(f"No such project: {', '.join(dict.fromkeys(map(unquoted, unknown)))}", "project_ids")
    if model.project_id in project_ids:
        text = f"project_ids: {model.project_id} owns {as_json(model.id)} and needs no permission; leave it out"
        raise BadRequest(text, "project_ids")
    table = CheckpointPermission
    for project_id in project_ids:
        row = {"id": new_id("cp", "_"), "project_id": model.project_id, "model_id": model.id, "grantee_id": project_id}
        session.execute(upsert(table).values(row).on_conflict_do_nothing())
    rows = session.scalars(select(table).where(table.model_id == model.id, table.grantee_id.in_(project_ids)))
    by_project = {row.grantee_id: row for row in rows}
    return [by_project[project_id] for project_id in dict.fromkeys(project_ids)]


def page(
    session: Session, model: TunedModel, page: Page, order: Order, project_id: str | None
) -> list[CheckpointPermission]:
    """The permissions, or that of one project. Raises BadRequest for an unknown `page.after`."""
    table = CheckpointPermission
    only = () if project_id is None else (table.grantee_id == project_id,)
    of_model = table.model_id == model.id
    return resources.page(session, table, *page, of_model, only=only, is_ascending=order == "ascending")


def withdraw(session: Session, model: TunedModel, permission_id: str) -> None:
    """Withdraw a permission: new jobs are refused, accepted ones continue. Raises NotFound."""
    table = CheckpointPermission
    session.delete(resources.get(session, table, permission_id, table.model_id == model.id, param="permission_id"))
    session.flush()
