"""Base models, their aliases, and their registrations by HTTP."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, foreign, relationship

from app.db.tables.base import (
    Base,
    Flag,
    Key,
    LeasedRow,
    ProjectId,
    Seq,
    Strings,
    Time,
    checks,
    lease_constraints,
    sql_string_list,
)
from app.domain.base_models.catalog import CatalogEntry
from app.domain.base_models.registrations import FINISHED, UNFINISHED, RegistrationState


class BaseModelRow(Base):
    """A registered base model. With `project_id` NULL every project may use it."""

    __tablename__ = "base_models"

    name: Mapped[Key]
    project_id: Mapped[ProjectId | None]
    directory: Mapped[str]
    manifest_sha256: Mapped[str]
    files: Mapped[dict[str, Any]]
    entry: Mapped[dict[str, Any]]  # a catalog.CatalogEntry, as it was registered
    # What the first job counted if the registration did not. Beside the entry, so that processes of an earlier release,
    # which know no such key of it, can still read it.
    counted_activation_bytes: Mapped[dict[str, Any] | None]
    created_at: Mapped[Time]

    @property
    def catalog_entry(self) -> CatalogEntry:
        entry = CatalogEntry.model_validate(self.entry)
        if entry.activation_bytes or self.counted_activation_bytes is None:
            return entry
        return entry.model_copy(update={"activation_bytes": self.counted_activation_bytes})


class ModelAlias(Base):
    """Another name of a base model. Not a foreign key: a base model may be removed and registered again."""

    __tablename__ = "model_aliases"

    name: Mapped[Key]
    base_model: Mapped[str]
    created_at: Mapped[Time]
    base: Mapped[BaseModelRow | None] = relationship(
        primaryjoin=lambda: BaseModelRow.name == foreign(ModelAlias.base_model), lazy="selectin", viewonly=True
    )

    @property
    def is_registered(self) -> bool:
        return self.base is not None


class BaseModelRegistration(LeasedRow, Base):
    """A directory that a worker checks, hashes and registers, with a lease as exports have.

    With `is_pull` the worker downloads `source` first: `directory` is then the one of all downloads, until the model
    has one of its own.
    """

    __tablename__ = "base_model_registrations"
    __table_args__ = (
        *lease_constraints(RegistrationState, FINISHED),
        *checks(pull_has_source="source IS NOT NULL OR NOT is_pull"),
        Index(
            "uq_base_model_registrations_unfinished",
            "name",
            unique=True,
            postgresql_where=text(f"state IN ({sql_string_list(UNFINISHED)})"),
        ),
    )

    seq: Mapped[Seq]
    name: Mapped[str]
    directory: Mapped[str]
    learning_rate: Mapped[float | None]
    license: Mapped[str | None]
    source: Mapped[str | None]
    revision: Mapped[str | None]
    is_pull: Mapped[Flag]
    created_at: Mapped[Time]

    notes: Mapped[Strings]
