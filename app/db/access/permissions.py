"""Permissions of other projects to use an `ft:` model. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import CheckpointPermission, Project, TunedModel

Order = Literal["ascending", "descending"]


def grant(session: Session, model: TunedModel, project_ids: Sequence[str]) -> list[CheckpointPermission]:
    """Insert a permission for each project that has none; all of them, in the order of `project_ids`."""
    for project_id in project_ids:
        row = {"id": new_id("cp", "_"), "project_id": model.project_id, "model_id": model.id, "grantee_id": project_id}
        session.execute(upsert(CheckpointPermission).values(row).on_conflict_do_nothing())
    rows = session.scalars(_permissions_of(model).where(CheckpointPermission.grantee_id.in_(project_ids)))
    by_project = {row.grantee_id: row for row in rows}
    return [by_project[project_id] for project_id in dict.fromkeys(project_ids)]


def get(session: Session, model: TunedModel, permission_id: str) -> CheckpointPermission | None:
    return session.scalar(_permissions_of(model).where(CheckpointPermission.id == permission_id))


def page(
    session: Session,
    model: TunedModel,
    limit: int,
    after: CheckpointPermission | None = None,
    order: Order = "descending",
    project_id: str | None = None,
) -> list[CheckpointPermission]:
    """A page of permissions in order of creation; `project_id` selects that of one project."""
    seq, is_ascending = CheckpointPermission.seq, order == "ascending"
    query = _permissions_of(model).order_by(seq if is_ascending else seq.desc()).limit(limit)
    if project_id is not None:
        query = query.where(CheckpointPermission.grantee_id == project_id)
    if after is not None:
        query = query.where(seq > after.seq if is_ascending else seq < after.seq)
    return list(session.scalars(query))


def withdraw(session: Session, permission: CheckpointPermission) -> None:
    session.delete(permission)
    session.flush()


def existing_project_ids(session: Session, project_ids: Sequence[str]) -> set[str]:
    return set(session.scalars(select(Project.id).where(Project.id.in_(project_ids))))


def _permissions_of(model: TunedModel) -> Select[CheckpointPermission]:
    return select(CheckpointPermission).where(CheckpointPermission.model_id == model.id)
