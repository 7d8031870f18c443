"""Every table in one file. Each row carries its project; the database itself refuses impossible rows.

Times are `clock_timestamp()` of the server: a worker never compares its own clock with another's. `seq` columns order
pages: creation times tie, sequences do not.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base as Base
from app.db.base import now as _now
from app.db.base import one_of as _one_of
from app.domain.states import TERMINAL, Desired, JobState


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = _now()


class ApiKey(Base):
    """Only the SHA-256 of the secret is kept: it is 256 random bits, so a slow hash would add nothing."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(unique=True)
    is_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = _now()
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class BaseModelRow(Base):
    """A registered base model. `project_id` NULL offers it to every project. `entry` is a catalog.CatalogEntry."""

    __tablename__ = "base_models"

    name: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    directory: Mapped[str]
    manifest_sha256: Mapped[str]
    files: Mapped[dict[str, Any]]
    entry: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = _now()


class File(Base):
    """`line_count` is the number of non-blank lines of a checked JSONL file: what "auto" reckons with."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_page", "project_id", "seq", postgresql_where=text("deleted_at IS NULL")),
        CheckConstraint("bytes >= 0", name="bytes"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(index=True)  # of a file that a job produced
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str]
    line_count: Mapped[int | None]
    status: Mapped[str] = mapped_column(server_default="processed")
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]  # when the bytes went; they stay while a job still needs them


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"state IN ({_one_of(JobState)})", name="state"),
        CheckConstraint(f"desired IN ({_one_of(Desired)})", name="desired"),
        CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name="lease_whole"),
        CheckConstraint("(state = 'running') <= (lease_owner IS NOT NULL)", name="running_has_lease"),
        CheckConstraint(
            "(lease_owner IS NOT NULL) <= (state IN ('running', 'validating_files'))", name="lease_only_while_active"
        ),
        CheckConstraint(f"(state IN ({_one_of(TERMINAL)})) = (finished_at IS NOT NULL)", name="finished_at"),
        CheckConstraint("(state = 'succeeded') = (adapter_sha256 IS NOT NULL)", name="adapter"),
        CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name="error"),
        Index("ix_jobs_page", "project_id", "seq"),
        Index(
            "ix_jobs_claim",
            "state",
            text("priority DESC"),
            "seq",
            postgresql_where=text("state IN ('queued', 'validating_files')"),
        ),
        Index("ix_jobs_lease", "lease_expires_at", postgresql_where=text("lease_owner IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime] = _now()

    # what was asked for; never changes
    base_model: Mapped[str]
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"), index=True)
    spec: Mapped[dict[str, Any]]  # a spec.JobSpec
    suffix: Mapped[str | None]
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    priority: Mapped[int] = mapped_column(server_default="0")

    # what is true
    state: Mapped[str] = mapped_column(server_default=JobState.VALIDATING.value)
    desired: Mapped[str] = mapped_column(server_default=Desired.RUN.value)
    phase: Mapped[str | None]  # finer than the state, for people: "loading", "training", "publishing"
    attempt: Mapped[int] = mapped_column(server_default="0")  # the fencing token: every claim takes the next one
    train_attempts: Mapped[int] = mapped_column(server_default="0")
    crash_streak: Mapped[int] = mapped_column(server_default="0")
    run_after: Mapped[datetime] = _now()
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    event_seq: Mapped[int] = mapped_column(server_default="0")
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]  # {step, total_steps, epoch, tokens_per_second, eta_seconds, ...}

    # what came out
    trained_tokens: Mapped[int | None]
    fine_tuned_model: Mapped[str | None]
    result_file_ids: Mapped[list[str]] = mapped_column(server_default=text("'[]'::jsonb"))
    adapter_sha256: Mapped[str | None]  # of the archive
    adapter_bytes: Mapped[int | None]
    adapter_archive_file_id: Mapped[str | None]
    reason: Mapped[str | None]  # a states.Reason
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]


class Attempt(Base):
    __tablename__ = "attempts"
    __table_args__ = (
        Index("uq_attempts_one_open", "job_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        CheckConstraint("kind IN ('validate', 'train')", name="kind"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    worker: Mapped[str]
    started_at: Mapped[datetime] = _now()
    ended_at: Mapped[datetime | None]
    reason: Mapped[str | None]


class JobEvent(Base):
    """`seq` is taken from the job row in the same UPDATE: per job 1..n without a gap, in commit order."""

    __tablename__ = "job_events"
    __table_args__ = (
        CheckConstraint("level IN ('info', 'warn', 'error')", name="level"),
        CheckConstraint("type IN ('message', 'metrics')", name="type"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    attempt: Mapped[int]
    created_at: Mapped[datetime] = _now()
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class Checkpoint(Base):
    """Public: an adapter at the end of an epoch or at a pause. The last three are kept, others are retired."""

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
    created_at: Mapped[datetime] = _now()
    retired_at: Mapped[datetime | None]


class Snapshot(Base):
    """Private: what a later attempt goes on from."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "step"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    attempt: Mapped[int]
    step: Mapped[int]
    manifest_sha256: Mapped[str]
    storage_keys: Mapped[dict[str, Any]]  # file name -> key
    created_at: Mapped[datetime] = _now()


class TunedModel(Base):
    """An `ft:` model: the name under which a finished job's adapter, or one of its checkpoints, is known."""

    __tablename__ = "tuned_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    created_at: Mapped[datetime] = _now()
    deleted_at: Mapped[datetime | None]


class MeasurementRow(Base):
    """What one attempt took, against its plan. `formula_*` are predictions without any correction by measurements."""

    __tablename__ = "measurements"
    __table_args__ = (
        Index("ix_measurements_alike", "base_manifest_sha256", "device_name", "quantization", "created_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime] = _now()
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


class Worker(Base):
    """Who is alive. `project_id` NULL: it works for every project."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    queue: Mapped[str]
    hostname: Mapped[str]
    pid: Mapped[int]
    about: Mapped[dict[str, Any]]  # device, versions
    started_at: Mapped[datetime] = _now()
    seen_at: Mapped[datetime] = _now()
