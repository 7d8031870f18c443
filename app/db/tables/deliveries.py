"""Delivery targets of projects, deliveries of adapters (the outbox), and what the trainer recorded to check them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.base import (
    LEASE_WHOLE,
    Base,
    CheckpointId,
    Count,
    Flag,
    JobId,
    Key,
    Leased,
    ProjectId,
    Seq,
    Strings,
    Time,
    checks,
    sql_string_list,
)
from app.db.tables.jobs import Checkpoint, Job
from app.domain.deliveries.targets import DUE_STATES, DeliveryState, TargetKind, TargetStatus


class DeliveryTarget(Base):
    """`credentials` are encrypted; a deleted target keeps its row for the history of its deliveries, without them."""

    __tablename__ = "delivery_targets"
    __table_args__ = (
        *checks(
            kind=f"kind IN ({sql_string_list(TargetKind)})",
            deleted_without_credentials="(deleted_at IS NOT NULL) <= (credentials IS NULL)",
        ),
        Index(
            "uq_delivery_targets_name", "project_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")
        ),
        Index("ix_delivery_targets_page", "project_id", "seq"),
    )

    id: Mapped[Key]
    seq: Mapped[Seq]
    project_id: Mapped[ProjectId]
    name: Mapped[str]
    kind: Mapped[str]
    destination: Mapped[dict[str, Any]]  # a domain.deliveries.targets.Destination
    credentials: Mapped[str | None]  # a token of app.db.deliveries.credentials
    credential_names: Mapped[Strings]
    served_model: Mapped[str | None]  # one name for every adapter that is delivered, each replacing the one before
    is_default: Mapped[Flag]  # of jobs that name no target
    created_at: Mapped[Time]
    updated_at: Mapped[Time]
    deleted_at: Mapped[datetime | None]
    error: str | None = None  # no column: why the credentials cannot be used, once a service has looked

    @property
    def status(self) -> TargetStatus:
        return TargetStatus.READY if self.error is None else TargetStatus.CREDENTIALS_LOST


class Delivery(Leased, Base):
    """One adapter for one target. A target has one attempt at a time.

    `tries` is the position in the retry schedule. A delivered one has a `next_attempt_at` if its target can lose it:
    that attempt checks whether the target still has it.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        *checks(
            state=f"state IN ({sql_string_list(DeliveryState)})",
            next_attempt_at=f"(state IN ({sql_string_list(DUE_STATES)})) <= (next_attempt_at IS NOT NULL)",
            ended="(state IN ('failed', 'withdrawn')) <= (next_attempt_at IS NULL)",
            tries="tries BETWEEN 0 AND attempt",
            lease_whole=LEASE_WHOLE,
        ),
        Index("ix_deliveries_lease", "lease_expires_at", postgresql_where=text("lease_owner IS NOT NULL")),
        Index(
            "uq_deliveries_one_of_a_model",
            "target_id",
            "model",
            unique=True,
            postgresql_where=text("state <> 'withdrawn'"),
        ),
        Index("ix_deliveries_job", "job_id", "seq"),
        Index("ix_deliveries_model", "model"),
        Index("ix_deliveries_served_model", "served_model"),
        Index(
            "ix_deliveries_due", "target_id", "next_attempt_at", postgresql_where=text("next_attempt_at IS NOT NULL")
        ),
    )

    seq: Mapped[Seq]
    project_id: Mapped[ProjectId]
    target_id: Mapped[str] = mapped_column(ForeignKey("delivery_targets.id"))
    job_id: Mapped[JobId]
    checkpoint_id: Mapped[CheckpointId]
    model: Mapped[str]  # the `ft:` name
    served_model: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=DeliveryState.PENDING.value)
    tries: Mapped[Count]
    next_attempt_at: Mapped[datetime | None]
    error: Mapped[str | None]  # of the last attempt
    location: Mapped[dict[str, Any] | None]  # what the target has, as its kind reports it
    served_check: Mapped[dict[str, Any] | None]  # a domain.deliveries.served_check.ServedCheck
    created_at: Mapped[Time]
    delivered_at: Mapped[datetime | None]
    updated_at: Mapped[Time]
    target: Mapped[DeliveryTarget] = relationship(viewonly=True, lazy="selectin")
    # A claim loads these, too; to engines also what they have under the same name.
    job: Mapped[Job] = relationship(viewonly=True, lazy="raise")
    checkpoint: Mapped[Checkpoint] = relationship(viewonly=True, lazy="raise")
    served_reference: Mapped[ServedReferenceRow | None] = relationship(
        viewonly=True,
        lazy="raise",
        primaryjoin="foreign(Delivery.checkpoint_id) == ServedReferenceRow.checkpoint_id",
    )
    same_name: Sequence[Delivery] = ()  # no column


class ServedReferenceRow(Base):
    """The log-probabilities that the trainer recorded for a job's result: a domain.deliveries.ServedReference."""

    __tablename__ = "served_references"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[ProjectId]
    reference: Mapped[dict[str, Any]]
    created_at: Mapped[Time]
