"""Registered base models, their aliases, and the `ft:` models trained from them. Never commits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, func, or_, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.tables import BaseModelRow, Checkpoint, CheckpointPermission, Job, ModelAlias, TunedModel
from app.domain.base_models.catalog import CatalogEntry
from app.domain.planning.execution_plan import Recompute


def register(
    session: Session,
    name: str,
    directory: Path,
    files: dict[str, Any],
    manifest_sha256: str,
    entry: CatalogEntry,
) -> None:
    """Insert a base model, or replace the one of this name."""
    values = {
        "directory": str(directory),
        "files": files,
        "manifest_sha256": manifest_sha256,
        "entry": entry.model_dump(mode="json"),
        "counted_activation_bytes": None,
    }
    statement = upsert(BaseModelRow).values(name=name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def add_activation_bytes(
    session: Session, project_id: str, name: str, activation_bytes: Mapping[Recompute, float]
) -> None:
    """Complete a base model that was registered without them."""
    row = get_base(session, project_id, name)
    if row is not None and not row.catalog_entry.activation_bytes:
        row.counted_activation_bytes = {str(degree): size for degree, size in activation_bytes.items()}
        session.flush()


def get_base(session: Session, project_id: str, name: str) -> BaseModelRow | None:
    return session.scalar(select(BaseModelRow).where(BaseModelRow.name == name, is_offered_to(project_id)))


def is_offered_to(project_id: str | SQLColumnExpression[str]) -> ColumnElement[bool]:
    """SQL condition: the base model belongs to all projects or to this one."""
    return or_(BaseModelRow.project_id.is_(None), BaseModelRow.project_id == project_id)


def list_base(session: Session, project_id: str | None = None) -> list[BaseModelRow]:
    """The base models that a project may use; without a project, all of them."""
    query = select(BaseModelRow).order_by(BaseModelRow.name)
    if project_id is not None:
        query = query.where(is_offered_to(project_id))
    return list(session.scalars(query))


def get_alias(session: Session, name: str) -> ModelAlias | None:
    return session.get(ModelAlias, name)


def add_tuned(session: Session, job: Job, checkpoint: Checkpoint) -> TunedModel:
    model = TunedModel(id=checkpoint.name, project_id=job.project_id, job_id=job.id, checkpoint_id=checkpoint.id)
    session.add(model)
    session.flush()
    return model


def lock_tuned(session: Session, project_id: str, model_id: str) -> bool:
    """Keep an `ft:` model from being deleted until this transaction ends; False if there is none."""
    return session.scalar(_tuned(project_id, model_id).with_for_update(read=True)) is not None


def get_usable(session: Session, project_id: str, model_id: str) -> TunedModel | None:
    """An `ft:` model of the project, or one that another project shares with it."""
    return session.scalar(_usable(project_id).where(TunedModel.id == model_id))


def list_usable(session: Session, project_id: str) -> list[TunedModel]:
    return list(session.scalars(_usable(project_id).order_by(TunedModel.seq)))


def delete_tuned(session: Session, model: TunedModel) -> None:
    model.deleted_at = func.clock_timestamp()
    session.flush()


def _tuned(project_id: str, model_id: str) -> Select[TunedModel]:
    return select(TunedModel).where(
        TunedModel.project_id == project_id, TunedModel.id == model_id, TunedModel.deleted_at.is_(None)
    )


def _usable(project_id: str) -> Select[TunedModel]:
    shared = select(CheckpointPermission.model_id).where(CheckpointPermission.grantee_id == project_id)
    return select(TunedModel).where(
        or_(TunedModel.project_id == project_id, TunedModel.id.in_(shared)), TunedModel.deleted_at.is_(None)
    )
