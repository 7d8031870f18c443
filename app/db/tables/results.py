"""Results of jobs: public checkpoints, private snapshots for the next attempt, and `ft:` models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Identity, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now


class Checkpoint(Base):
    """An adapter at the end of an epoch or at a pause. The last three and the best one are kept, others are retired."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step_number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    attempt: Mapped[int]
    step_number: Mapped[int]
    name: Mapped[str] = mapped_column(unique=True)  # fine_tuned_model_checkpoint
    metrics: Mapped[dict[str, Any]]
    manifest: Mapped[dict[str, Any]]
    file_ids: Mapped[list[str]]
    archive_file_id: Mapped[str]
    created_at: Mapped[datetime] = now()
    retired_at: Mapped[datetime | None]


class Snapshot(Base):
    """The training state from which a later attempt resumes."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "step"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    attempt: Mapped[int]
    step: Mapped[int]
    manifest_sha256: Mapped[str]
    storage_keys: Mapped[dict[str, Any]]  # file name -> key
    created_at: Mapped[datetime] = now()


class TunedModel(Base):
    """An `ft:` model: the public name of a finished job's adapter, or of one of its checkpoints."""

    __tablename__ = "tuned_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    created_at: Mapped[datetime] = now()
    deleted_at: Mapped[datetime | None]
