"""Webhook endpoints, deliveries (the outbox) and delivery attempts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.access import Project
from app.db.tables.base import LEASE_WHOLE, Base, Count, Flag, Key, Leased, NumberKey, ProjectId, Seq, Time, checks
from app.domain.webhooks import secret_hint


class WebhookEndpoint(Base):
    """Secrets are stored as `app.db.encryption.protect` returns them. During a rotation the previous one signs, too."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        *checks(
            secret="secret LIKE 'whsec_%' OR secret LIKE 'gAAAA%'",
            previous_secret="(previous_secret IS NULL) = (previous_secret_expires_at IS NULL)",
            event_types="jsonb_array_length(event_types) > 0",
            disabled_at="enabled = (disabled_at IS NULL)",
            disabled_reason="enabled = (disabled_reason IS NULL)",
        ),
        Index("ix_webhook_endpoints_page", "project_id", "seq"),
    )

    id: Mapped[Key]
    seq: Mapped[Seq]
    project_id: Mapped[ProjectId | None]  # NULL: the operator's
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[datetime | None]  # the first failure after the last success
    secret: Mapped[str]
    # Its last characters; NULL for a secret of an earlier release, stored in plain text.
    secret_hint: Mapped[str | None]
    previous_secret: Mapped[str | None]
    previous_secret_expires_at: Mapped[datetime | None]
    created_at: Mapped[Time]
    updated_at: Mapped[Time]

    signing_secret: str | None = None  # no column: the plain secret, once, after its creation or a rotation

    project: Mapped[Project | None] = relationship(viewonly=True)

    @property
    def project_name(self) -> str | None:
        return self.project.name if self.project else None

    @property
    def signing_secret_hint(self) -> str:
        return self.secret_hint or secret_hint(self.secret)


class WebhookDelivery(Leased, Base):
    """One event for one endpoint. The SQL function `announce_event` inserts the rows of events.

    `tries` is the position in the retry schedule, which starts again when a client requests another delivery.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("endpoint_id", "event_id"),
        *checks(
            state="state IN ('pending', 'delivered', 'failed')",
            next_attempt_at="(state = 'pending') = (next_attempt_at IS NOT NULL)",
            finished_at="(state = 'pending') = (finished_at IS NULL)",
            leased_while_pending="(lease_owner IS NOT NULL) <= (state = 'pending')",
            tries="tries BETWEEN 0 AND attempt",
            lease_whole=LEASE_WHOLE,
        ),
        Index("ix_webhook_deliveries_lease", "lease_expires_at", postgresql_where=text("lease_owner IS NOT NULL")),
        Index("ix_webhook_deliveries_page", "endpoint_id", "seq"),
        Index(
            "ix_webhook_deliveries_due", "endpoint_id", "next_attempt_at", postgresql_where=text("state = 'pending'")
        ),
        Index("ix_webhook_deliveries_created_at", "created_at"),
    )

    seq: Mapped[Seq]
    project_id: Mapped[ProjectId | None]  # NULL: the operator's
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str]  # the header `webhook-id`: the same in every attempt
    event_type: Mapped[str]
    data: Mapped[dict[str, Any]]
    is_test: Mapped[Flag]  # one attempt, which does not count as a failure of the endpoint
    created_at: Mapped[Time]
    state: Mapped[str] = mapped_column(server_default="pending")
    tries: Mapped[Count]
    next_attempt_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    attempts: Mapped[list[WebhookAttempt]] = relationship(
        order_by="WebhookAttempt.attempt.desc()", lazy="selectin", viewonly=True
    )


class WebhookAttempt(Base):
    """The outcome of one attempt. An attempt whose sender died has no row."""

    __tablename__ = "webhook_attempts"
    __table_args__ = (
        *checks(
            outcome="status_code IS NOT NULL OR error IS NOT NULL",
            duration_ms="duration_ms >= 0",
        ),
    )

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[NumberKey]
    project_id: Mapped[ProjectId | None]  # NULL: the operator's
    finished_at: Mapped[Time]
    duration_ms: Mapped[int]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    response: Mapped[str | None]  # the first bytes of the body
