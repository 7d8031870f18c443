"""The audit log: who changed what. A trigger refuses every UPDATE, DELETE and TRUNCATE."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now


class AuditEntry(Base):
    """`project_id` is the project of what was changed; NULL for what belongs to none, such as a base model.

    `actor_id` is a key's id, or an operator's account and host; without a foreign key, as an entry outlives its key.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        CheckConstraint("actor_type IN ('api_key', 'operator', 'system')", name="actor_type"),
        Index("ix_audit_log_page", "project_id", "seq"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime] = now()
    action: Mapped[str]
    actor_type: Mapped[str]
    actor_id: Mapped[str]
    object_ids: Mapped[list[str]]
    address: Mapped[str | None]
    request_id: Mapped[str | None]
