"""Retention rules of projects, and what processes of the service report about themselves."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.access import Project
from app.db.tables.base import Base, Key, ProjectKey, Time, checks, sql_string_list
from app.domain.operations.retention import MAX_DAYS, RetentionKind


class RetentionRule(Base):
    """What of a project is deleted after how many days. Without a row it is kept."""

    __tablename__ = "retention_rules"
    __table_args__ = (
        *checks(
            kind=f"kind IN ({sql_string_list(RetentionKind)})",
            days=f"days BETWEEN 1 AND {MAX_DAYS}",
        ),
    )

    project_id: Mapped[ProjectKey]
    kind: Mapped[Key]
    days: Mapped[int]
    due: Any = None  # no column: an app.db.operations.retention.Due, once a service has looked for it
    project: Mapped[Project] = relationship(lazy="joined", viewonly=True)


class ServiceState(Base):
    """`reconciler` and `webhooks` update their row every few seconds, `backup` after each complete backup."""

    __tablename__ = "service_state"

    name: Mapped[Key]
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    updated_at: Mapped[Time]
