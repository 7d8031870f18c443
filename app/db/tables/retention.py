"""Retention rules of projects."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, sql_string_list
from app.domain.operations.retention import MAX_DAYS, RetentionKind


class RetentionRule(Base):
    """What of a project is deleted after how many days. Without a row it is kept."""

    __tablename__ = "retention_rules"
    __table_args__ = (
        CheckConstraint(f"kind IN ({sql_string_list(RetentionKind)})", name="kind"),
        CheckConstraint(f"days BETWEEN 1 AND {MAX_DAYS}", name="days"),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    days: Mapped[int]
