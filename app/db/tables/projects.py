"""Who may come in: projects and the keys to them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, now


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = now()
    max_running_jobs: Mapped[int | None]
    share_weight: Mapped[float] = mapped_column(server_default="1")
    may_be_urgent: Mapped[bool] = mapped_column(server_default=text("false"))  # its jobs may go before everybody's


class ApiKey(Base):
    """Only the SHA-256 of the secret is kept: it is 256 random bits, so a slow hash would add nothing."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(unique=True)
    is_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = now()
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
