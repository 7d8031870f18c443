"""The fair queue: the usage of each project, and the position of each waiting job."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now


class ProjectUsage(Base):
    """`gpu_seconds` is decayed up to `counted_at`. Attempts with `is_counted` false are not included yet."""

    __tablename__ = "project_usage"
    __table_args__ = (CheckConstraint("gpu_seconds >= 0", name="gpu_seconds"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    gpu_seconds: Mapped[float] = mapped_column(server_default="0")
    counted_at: Mapped[datetime] = now()
    validation_turn_at: Mapped[datetime | None]  # when a validation of this project last began


class QueuePlace(Base):
    """The forecast for a waiting job, which the reconciler updates every few seconds.

    The table is unlogged, as the forecast is made again after a crash of PostgreSQL. Without a foreign key, as each
    insert would lock the row of the job, which its holder updates.
    """

    __tablename__ = "queue_places"
    __table_args__ = (
        CheckConstraint("position >= 1", name="position"),
        CheckConstraint("(waiting_for IS NULL) = (waiting_since IS NULL)", name="waiting_whole"),
        Index("ix_queue_places_position", "position"),
        {"prefixes": ["UNLOGGED"]},
    )

    job_id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    position: Mapped[int]
    expected_start_at: Mapped[datetime | None]
    waiting_for: Mapped[str | None]  # why no living worker can take the job
    waiting_since: Mapped[datetime | None]
    is_told: Mapped[bool] = mapped_column(server_default=text("false"))  # whether the job has an event about it
