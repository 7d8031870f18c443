"""Trainer logs: the end of the standard error of each attempt."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now

MAX_LOG_BYTES = 64 << 10


class JobLog(Base):
    """A copy of the end of a file on a worker's disk, replaced while the trainer runs and when it has ended."""

    __tablename__ = "job_logs"
    __table_args__ = (
        CheckConstraint(f"octet_length(text) <= {MAX_LOG_BYTES}", name="bounded"),
        CheckConstraint("cut_bytes >= 0", name="cut_bytes"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    text: Mapped[str]
    cut_bytes: Mapped[int]  # the size of the log's beginning, which is not stored
    updated_at: Mapped[datetime] = now()
