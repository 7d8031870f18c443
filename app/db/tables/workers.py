"""Who works, and what the work took."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, now


class Worker(Base):
    """Who is alive. `project_id` NULL: it works for every project."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    queue: Mapped[str]
    hostname: Mapped[str]
    pid: Mapped[int]
    about: Mapped[dict[str, Any]]  # device, versions
    started_at: Mapped[datetime] = now()
    seen_at: Mapped[datetime] = now()


class MeasurementRow(Base):
    """What one attempt took, against its plan. `formula_*` are predictions without any correction by measurements."""

    __tablename__ = "measurements"
    __table_args__ = (
        Index("ix_measurements_alike", "base_manifest_sha256", "device_name", "quantization", "created_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime] = now()
    device_kind: Mapped[str]
    device_name: Mapped[str]
    base_manifest_sha256: Mapped[str]
    quantization: Mapped[str]  # canonical JSON
    method: Mapped[str]
    recompute: Mapped[str]
    cache_weights: Mapped[bool]
    formula_loaded_bytes: Mapped[int]
    formula_working_bytes: Mapped[int]
    predicted_peak_bytes: Mapped[int]
    predicted_seconds: Mapped[float]
    loaded_bytes: Mapped[int]
    peak_bytes: Mapped[int]  # of the probe, then of the whole run
    seconds: Mapped[float | None]  # these three when the run is done
    step_seconds: Mapped[float | None]
    step_tokens: Mapped[int | None]
    # NULL in rows of before they were measured:
    step_flop: Mapped[float | None]  # of a token, by the formula
    probe_seconds: Mapped[float | None]
    validation_seconds: Mapped[float | None]
