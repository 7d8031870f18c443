"""Jobs, their attempts, events and trainer logs, and their results: checkpoints, snapshots, `ft:` models.

The table `jobs` is the queue.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Float, ForeignKey, Index, UniqueConstraint, func, select, text
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, column_property, mapped_column

from app.db.ids import new_id
from app.db.tables.base import (
    LEASE_WHOLE,
    Base,
    Count,
    Flag,
    IndexedJobId,
    IndexedProjectId,
    JobId,
    JobKey,
    Key,
    Leased,
    NumberKey,
    ProjectId,
    Seq,
    Strings,
    Time,
    checks,
    sql_string_list,
)
from app.domain.jobs.states import TERMINAL, Desired, JobState
from app.domain.scheduling.worker_capacity import JobRequirements

MAX_LOG_BYTES = 64 << 10


class Attempt(Base):
    __tablename__ = "attempts"
    __table_args__ = (
        Index("uq_attempts_one_open", "job_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("ix_attempts_usage", "project_id", "ended_at", postgresql_where=text("kind = 'train'")),
        *checks(
            kind="kind IN ('validate', 'train')",
            gpus="gpus >= 1",
            reservation_whole="(gpu_uuids IS NULL) = (budget_bytes IS NULL)",
            gpu_share="gpu_share > 0 AND gpu_share <= 1",
        ),
        Index("ix_attempts_uncounted", "project_id", postgresql_where=text("NOT is_counted AND kind = 'train'")),
        Index("ix_attempts_reserved", "ended_at", postgresql_where=text("budget_bytes IS NOT NULL")),
    )

    job_id: Mapped[JobKey]
    attempt: Mapped[NumberKey]
    project_id: Mapped[ProjectId]
    kind: Mapped[str]
    worker: Mapped[str]
    gpus: Mapped[int] = mapped_column(server_default="1")
    gpu_share: Mapped[float] = mapped_column(server_default="1")  # of each GPU: a slot of several has a part of it
    # the reservation on GPUs that several slots share; NULL on others
    gpu_uuids: Mapped[list[str] | None]
    budget_bytes: Mapped[int | None]  # of memory on each of them; fixed by the claim
    is_counted: Mapped[Flag]  # whether `project_usage` includes it
    started_at: Mapped[Time]
    ended_at: Mapped[datetime | None]
    reason: Mapped[str | None]


class Job(Leased, Base):
    __tablename__ = "jobs"
    __table_args__ = (
        *checks(
            state=f"state IN ({sql_string_list(JobState)})",
            desired=f"desired IN ({sql_string_list(Desired)})",
            lease_whole=LEASE_WHOLE,
            running_has_lease="(state = 'running') <= (lease_owner IS NOT NULL)",
            lease_only_while_active="(lease_owner IS NOT NULL) <= (state IN ('running', 'validating_files'))",
            finished_at=f"(state IN ({sql_string_list(TERMINAL)})) = (finished_at IS NOT NULL)",
            adapter="(state = 'succeeded') = (adapter_sha256 IS NOT NULL)",
            error="(state = 'failed') = (error_code IS NOT NULL)",
            priority="priority BETWEEN -100 AND 100",
            yield_only_while_running="(yield_requested_at IS NOT NULL) <= (state = 'running')",
        ),
        Index("ix_jobs_page", "project_id", "seq"),
        Index("ix_jobs_state", "project_id", "state", "seq"),
        Index("ix_jobs_created", "project_id", "created_at"),
        Index(
            "ix_jobs_claim",
            "state",
            "project_id",
            text("is_urgent DESC"),
            text("priority DESC"),
            "seq",
            postgresql_where=text("state IN ('queued', 'validating_files')"),
        ),
        Index("ix_jobs_group", "group_id", postgresql_where=text("group_id IS NOT NULL")),
        Index("ix_jobs_failed", "finished_at", postgresql_where=text("state = 'failed'")),
        Index("ix_jobs_lease", "lease_expires_at", postgresql_where=text("lease_owner IS NOT NULL")),
        Index(
            "ix_jobs_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where=text("metadata IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # assigned, as the training time below refers to it
    seq: Mapped[Seq]
    project_id: Mapped[ProjectId]
    created_at: Mapped[Time]

    # the request; immutable (a trigger refuses changes of its project, training file and spec)
    base_model: Mapped[str]
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"), index=True)
    spec: Mapped[dict[str, Any]]  # a spec.JobSpec
    suffix: Mapped[str | None]
    urgent: Mapped[Flag] = mapped_column("is_urgent")  # precedes all jobs that are not urgent, if the project may
    worker_labels: Mapped[Strings]  # the worker must have all of them
    deliver_to: Mapped[Strings]  # names of delivery targets
    integrations: Mapped[list[dict[str, Any]] | None]  # each an integrations.Integration
    cloned_from: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    group_id: Mapped[str | None]  # that of the jobs of one request, to be compared
    request: Mapped[dict[str, Any] | None]  # the body as it was sent; NULL in old rows
    request_id: Mapped[str | None]  # of the request that created the job, for the logs of its attempts
    traceparent: Mapped[str | None]  # of that request's span (W3C Trace Context), if it was traced

    # what the owner may change
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    priority: Mapped[Count]  # among the jobs of its project; may change until the job ends

    # the requirements; known after the validation of its files
    needed_cpu_bytes: Mapped[int | None]
    needed_cuda_bytes: Mapped[int | None]
    planned_seconds: Mapped[float | None]

    # preemption, requested by the scheduler
    yield_requested_at: Mapped[datetime | None]  # the attempt ends at its next step boundary
    times_yielded: Mapped[Count]

    # accepted, but possibly unintended parts of the request and the files: {code, message, file, count, ...}
    warnings: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'::jsonb"))

    # the state
    state: Mapped[str] = mapped_column(server_default=JobState.VALIDATING.value)
    desired: Mapped[str] = mapped_column(server_default=Desired.RUN.value)
    phase: Mapped[str | None]  # finer than the state: "loading", "training", "publishing", "waiting_for_storage"
    train_attempts: Mapped[Count]
    crash_streak: Mapped[Count]
    run_after: Mapped[Time]
    storage_full_since: Mapped[datetime | None]  # when the first of consecutive attempts ended on a full disk
    event_seq: Mapped[Count]
    version: Mapped[int] = mapped_column(server_default="1")  # of everything that clients see; a trigger increments it
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]  # by its owner: no list and no read has it any more
    # the training time: that of the attempts that have ended, and since when another one runs
    training_seconds: Mapped[float] = column_property(
        select(func.coalesce(func.extract("epoch", func.sum(Attempt.ended_at - Attempt.started_at)), 0).cast(Float))
        .where(Attempt.job_id == id, Attempt.kind == "train")
        .scalar_subquery(),
        deferred=True,
        group="training_time",
    )
    attempt_started_at: Mapped[datetime | None] = column_property(
        select(Attempt.started_at)
        .where(Attempt.job_id == id, Attempt.kind == "train", Attempt.ended_at.is_(None))
        .scalar_subquery(),
        deferred=True,
        group="training_time",
    )
    progress: Mapped[dict[str, Any] | None]  # {step, total_steps, epoch, tokens_per_second, eta_seconds, ...}

    # the result
    trained_tokens: Mapped[int | None]
    fine_tuned_model: Mapped[str | None]
    result_file_ids: Mapped[Strings]
    adapter_sha256: Mapped[str | None]  # of the archive
    adapter_bytes: Mapped[int | None]
    adapter_archive_file_id: Mapped[str | None]
    evaluation: Mapped[dict[str, Any] | None]  # the newest one: {id, seq, status, summary, ...}
    reason: Mapped[str | None]  # a states.Reason
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]

    @property
    def requirements(self) -> JobRequirements:
        """Those of the request: the needed memory is not among them."""
        return JobRequirements(self.base_model, frozenset(self.worker_labels))


class JobEvent(Base):
    """`seq` is taken from the job's row by an UPDATE: 1..n for each job, without a gap, in commit order."""

    __tablename__ = "job_events"
    __table_args__ = (
        *checks(
            level="level IN ('info', 'warn', 'error')",
            type="type IN ('message', 'metrics')",
        ),
    )

    job_id: Mapped[JobKey]
    seq: Mapped[NumberKey]
    id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[ProjectId]
    attempt: Mapped[int]
    created_at: Mapped[Time]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class JobLog(Base):
    """A copy of the end of a file on a worker's disk, replaced while the trainer runs and when it has ended."""

    __tablename__ = "job_logs"
    __table_args__ = (
        *checks(
            bounded=f"octet_length(text) <= {MAX_LOG_BYTES}",
            cut_bytes="cut_bytes >= 0",
        ),
    )

    job_id: Mapped[JobKey]
    attempt: Mapped[NumberKey]
    project_id: Mapped[ProjectId]
    text: Mapped[str]
    cut_bytes: Mapped[int]  # the size of the log's beginning, which is not stored
    updated_at: Mapped[Time]


class Checkpoint(Base):
    """An adapter at the end of an epoch or at a pause. The last three and the best one are kept, others are retired.

    `file_ids` are the files as the training wrote them, which jobs, exports, evaluations and deliveries read: a job
    that continues the adapter names it by the SHA-256 of its manifest. Users get `public_file_ids`.
    """

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step_number"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ftckpt", "_"))
    seq: Mapped[Seq]
    project_id: Mapped[ProjectId]
    job_id: Mapped[IndexedJobId]
    attempt: Mapped[int]
    step_number: Mapped[int]
    name: Mapped[str] = mapped_column(unique=True)  # fine_tuned_model_checkpoint
    metrics: Mapped[dict[str, Any]]
    manifest: Mapped[dict[str, Any]]
    file_ids: Mapped[list[str]]
    evaluated_file_ids: Mapped[list[str] | None]  # with the card and the manifest that name its newest evaluation
    archive_file_id: Mapped[str]  # of the public files
    created_at: Mapped[Time]
    retired_at: Mapped[datetime | None]
    is_best = False  # no column: a list of the job's checkpoints sets it

    @hybrid_property
    def public_file_ids(self) -> list[str]:
        return self.evaluated_file_ids or self.file_ids

    @public_file_ids.inplace.expression
    @classmethod
    def _public_file_ids(cls) -> ColumnElement[list[str]]:
        return func.coalesce(cls.evaluated_file_ids, cls.file_ids)

    @property
    def all_file_ids(self) -> list[str]:
        return [*self.file_ids, *(self.evaluated_file_ids or ()), self.archive_file_id]


class Snapshot(Base):
    """The training state from which a later attempt resumes."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "step"),)

    id: Mapped[Key]
    project_id: Mapped[ProjectId]
    job_id: Mapped[IndexedJobId]
    attempt: Mapped[int]
    step: Mapped[int]
    manifest_sha256: Mapped[str]
    storage_keys: Mapped[dict[str, Any]]  # file name -> key
    created_at: Mapped[Time]


class JobTokens(Base):
    """The tokens of a job's files as its validation read them (app.domain.datasets.stored_tokens)."""

    __tablename__ = "job_tokens"

    id: Mapped[Key]
    project_id: Mapped[ProjectId]
    job_id: Mapped[IndexedJobId]
    rendered_at: Mapped[str]  # the time that chat templates printed
    storage_keys: Mapped[dict[str, Any]]  # "training", "validation" -> key
    sha256: Mapped[dict[str, Any]]  # of the same
    created_at: Mapped[Time]


class TunedModel(Base):
    """An `ft:` model: the public name of a finished job's adapter, or of one of its checkpoints."""

    __tablename__ = "tuned_models"

    id: Mapped[Key]
    seq: Mapped[Seq]
    project_id: Mapped[IndexedProjectId]
    job_id: Mapped[JobId]
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    created_at: Mapped[Time]
    deleted_at: Mapped[datetime | None]
