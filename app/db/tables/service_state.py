"""What processes of the service report about themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now


class ServiceState(Base):
    """`reconciler` and `webhooks` update their row every few seconds, `backup` after each complete backup."""

    __tablename__ = "service_state"

    name: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    updated_at: Mapped[datetime] = now()
