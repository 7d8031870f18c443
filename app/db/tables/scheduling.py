"""The fair queue, with the usage of each project and the position of each waiting job; workers, and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, JobKey, Key, NumberKey, ProjectId, ProjectKey, Time, checks
from app.domain.scheduling.worker_capacity import worker_capacity


class ProjectUsage(Base):
    """`gpu_seconds` is decayed up to `counted_at`. Attempts with `is_counted` false are not included yet."""

    __tablename__ = "project_usage"
    __table_args__ = (*checks(gpu_seconds="gpu_seconds >= 0"),)

    project_id: Mapped[ProjectKey]
    gpu_seconds: Mapped[float] = mapped_column(server_default="0")
    counted_at: Mapped[Time]
    validation_turn_at: Mapped[datetime | None]  # when a validation of this project last began


class QueuePlace(Base):
    """The forecast for a waiting job, which the reconciler updates every few seconds.

    The table is unlogged, as the forecast is made again after a crash of PostgreSQL. Without a foreign key, as each
    insert would lock the row of the job, which its holder updates.
    """

    __tablename__ = "queue_places"
    __table_args__ = (
        *checks(
            position="position >= 1",
            waiting_whole="(waiting_for IS NULL) = (waiting_since IS NULL)",
        ),
        Index("ix_queue_places_position", "position"),
        {"prefixes": ["UNLOGGED"]},
    )

    job_id: Mapped[Key]
    project_id: Mapped[str]
    position: Mapped[int]
    expected_start_at: Mapped[datetime | None]
    waiting_for: Mapped[str | None]  # why no live worker can take the job
    waiting_since: Mapped[datetime | None]
    # Whether the job has an event about its wait.
    has_wait_event: Mapped[bool] = mapped_column("is_told", server_default=text("false"))


class Worker(Base):
    """A worker process with its last heartbeat. With `project_id` NULL it works for every project."""

    __tablename__ = "workers"

    id: Mapped[Key]
    project_id: Mapped[ProjectId | None]
    queue: Mapped[str]
    hostname: Mapped[str]
    pid: Mapped[int]
    about: Mapped[dict[str, Any]]  # device, versions
    started_at: Mapped[Time]
    seen_at: Mapped[Time]
    lost_at: Mapped[datetime | None]  # when the reconciler found that the heartbeats had stopped without a shutdown
    # No columns: what app.db.scheduling.workers and app.services.queue read besides. The ids are None without one, or
    # if the caller may not see it.
    models: Sequence[str] = ()
    is_busy: bool = False
    out_of_service_at: datetime | None = None  # of `DeviceLosses`
    job_id: str | None = None
    evaluation_id: str | None = None

    @property
    def name(self) -> str:
        return self.id

    @property
    def status(self) -> Literal["idle", "busy", "out_of_service"]:
        if self.out_of_service_at is not None:
            return "out_of_service"
        return "busy" if self.is_busy else "idle"

    @property
    def device(self) -> dict[str, Any]:
        capacity = worker_capacity(self.about)
        return {
            "kind": self.about.get("kind"),
            "name": self.about.get("device"),
            "memory_bytes": self.about.get("memory_bytes"),
            "count": capacity.gpus,
            "slots_per_gpu": capacity.slots_per_gpu if capacity.shares_gpus else 1,
            "slot_bytes": capacity.slot_bytes if capacity.shares_gpus else None,
        }

    @property
    def labels(self) -> list[str]:
        return self.about.get("labels") or []

    @property
    def versions(self) -> dict[str, str | None] | None:
        return self.about.get("versions")


class DeviceLosses(Base):
    """The attempts in a row in which a worker lost its GPU; no row: none."""

    __tablename__ = "device_losses"
    __table_args__ = (*checks(count="count >= 1"),)

    slot: Mapped[Key]  # the worker's id without its incarnation
    count: Mapped[int]
    out_of_service_at: Mapped[datetime | None]


class MeasurementRow(Base):
    """Measured memory and time of one attempt. `formula_*` are predictions without a correction by measurements."""

    __tablename__ = "measurements"
    __table_args__ = (
        Index("ix_measurements_alike", "base_manifest_sha256", "device_name", "quantization", "created_at"),
    )

    job_id: Mapped[JobKey]
    attempt: Mapped[NumberKey]
    project_id: Mapped[ProjectId]
    created_at: Mapped[Time]
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
    peak_bytes: Mapped[int]  # of the probe, after the run the maximum of both
    seconds: Mapped[float | None]  # this and the next two are set after the run
    step_seconds: Mapped[float | None]
    step_tokens: Mapped[int | None]
    # NULL in rows that an earlier release wrote:
    step_flop: Mapped[float | None]  # per token, by the formula
    probe_seconds: Mapped[float | None]
    validation_seconds: Mapped[float | None]
    others_share: Mapped[float | None]  # written by earlier releases; not used
