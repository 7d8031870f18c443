"""Evaluations of adapters: a separate queue, with leases and fencing tokens as that of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import (
    Base,
    CheckpointWork,
    Flag,
    NumberKey,
    ProjectId,
    Time,
    checks,
    lease_constraints,
)
from app.domain.evaluations.headline import Headline, headline
from app.domain.jobs.states import FINISHED_WORK, WorkState


class Evaluation(CheckpointWork, Base):
    """Base model and adapter answer the rows of a file, and graders compare the answers."""

    __tablename__ = "evaluations"
    __table_args__ = (
        *lease_constraints(WorkState, FINISHED_WORK),
        *checks(
            summary="(state = 'succeeded') = (summary IS NOT NULL)",
            reservation_whole="(gpu_uuids IS NULL) = (budget_bytes IS NULL)",
        ),
        Index("ix_evaluations_claim", "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_evaluations_lease", "lease_expires_at", postgresql_where=text("lease_owner IS NOT NULL")),
        Index("ix_evaluations_page", "job_id", "seq"),
        Index("ix_evaluations_reserved", "finished_at", postgresql_where=text("budget_bytes IS NOT NULL")),
        Index("ix_evaluations_unfinished", "project_id", postgresql_where=text("state IN ('queued', 'running')")),
    )

    # the request, in addition to that of all CheckpointWork
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    settings: Mapped[dict[str, Any]]  # a graders.EvaluationSettings

    # the state, in addition to that of every LeasedRow
    plan: Mapped[dict[str, Any]]  # {rows, prompt_tokens, max_answer_tokens, estimated_seconds}
    progress: Mapped[dict[str, Any] | None]  # {answers, total_answers}
    estimated_finish: Mapped[datetime | None]  # of a running one
    # of the newest attempt: its worker, and its reservation on GPUs that several slots share; NULL on others
    worker: Mapped[str | None]
    gpu_uuids: Mapped[list[str] | None]
    budget_bytes: Mapped[int | None]

    # the result
    precision: Mapped[str | None]  # in which the base model answered
    summary: Mapped[dict[str, Any] | None]
    row_index: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)  # a results.ResultIndex: 100 kB at most
    results_file_id: Mapped[str | None]
    report_file_id: Mapped[str | None]

    @property
    def expected_finish(self) -> datetime | None:
        return self.estimated_finish if self.state == WorkState.RUNNING else None

    @property
    def headline(self) -> Headline | None:
        return headline(self.summary)

    @property
    def attempt_started_at(self) -> datetime | None:
        return self.started_at if self.lease_owner else None


class EvaluationAttempt(Base):
    """When a worker held an evaluation, for usage and fair share. A trigger on `evaluations` writes the end."""

    __tablename__ = "evaluation_attempts"
    __table_args__ = (
        *checks(gpus="gpus > 0"),
        Index("ix_evaluation_attempts_usage", "project_id", "ended_at"),
        Index("ix_evaluation_attempts_uncounted", "project_id", postgresql_where=text("NOT is_counted")),
    )

    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)
    attempt: Mapped[NumberKey]
    project_id: Mapped[ProjectId]
    worker: Mapped[str]
    gpus: Mapped[float]  # that it had; a slot of a shared GPU is a part of one
    is_counted: Mapped[Flag]  # whether `project_usage` includes it
    started_at: Mapped[Time]
    ended_at: Mapped[datetime | None]
