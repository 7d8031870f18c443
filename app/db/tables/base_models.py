"""Base models and their aliases."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, now


class BaseModelRow(Base):
    """A registered base model. With `project_id` NULL every project may use it. `entry` is a catalog.CatalogEntry."""

    __tablename__ = "base_models"

    name: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    directory: Mapped[str]
    manifest_sha256: Mapped[str]
    files: Mapped[dict[str, Any]]
    entry: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()


class ModelAlias(Base):
    """Another name of a base model. Not a foreign key: a base model may be removed and registered again."""

    __tablename__ = "model_aliases"

    name: Mapped[str] = mapped_column(primary_key=True)
    base_model: Mapped[str]
    created_at: Mapped[datetime] = now()
