"""What the fair queue remembers: what each project has used, and where each waiting job stands."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, now


class ProjectUsage(Base):
    """`gpu_seconds` is decayed up to `counted_at`. Attempts with `is_counted` false are to be added to it."""

    __tablename__ = "project_usage"
    __table_args__ = (CheckConstraint("gpu_seconds >= 0", name="gpu_seconds"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    gpu_seconds: Mapped[float] = mapped_column(server_default="0")
    counted_at: Mapped[datetime] = now()
    validation_turn_at: Mapped[datetime | None]  # when a validation of this project last began


class QueuePlace(Base):
    """A forecast, made again every few seconds by the reconciler; after a crash of PostgreSQL it is made anew.

    No foreign key: for each row it would lock the job's, which its holder writes to.
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
    waiting_for: Mapped[str | None]  # why no living worker can take it
    waiting_since: Mapped[datetime | None]
    is_told: Mapped[bool] = mapped_column(server_default=text("false"))  # an event of the job has said so
