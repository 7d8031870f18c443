"""Permissions of other projects to use an `ft:` model."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now


class CheckpointPermission(Base):
    """The project `project_id` owns the model, `grantee_id` may use it; to withdraw the permission deletes the row."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        UniqueConstraint("model_id", "grantee_id"),
        CheckConstraint("project_id <> grantee_id", name="grantee_is_another"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model_id: Mapped[str] = mapped_column(ForeignKey("tuned_models.id"))
    grantee_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    created_at: Mapped[datetime] = now()
