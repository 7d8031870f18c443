"""What the tables of the queues with leases share: exports, evaluations and registrations of base models."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import now, sql_string_list


class LeasedRow:
    """The columns of the lease and of the end; `app.db.jobs.leased_rows` writes them."""

    state: Mapped[str] = mapped_column(server_default="queued")
    attempt: Mapped[int] = mapped_column(server_default="0")  # the fencing token
    crash_streak: Mapped[int] = mapped_column(server_default="0")
    run_after: Mapped[datetime] = now()
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]

    @property
    def error(self) -> dict[str, Any] | None:
        """The error as a response has it."""
        return {"code": self.error_code, "message": self.error_message or ""} if self.error_code else None


def lease_constraints(states: type[StrEnum], finished: Iterable[StrEnum]) -> tuple[CheckConstraint, ...]:
    return (
        CheckConstraint(f"state IN ({sql_string_list(states)})", name="state"),
        CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name="lease_whole"),
        CheckConstraint("(state = 'running') = (lease_owner IS NOT NULL)", name="running_has_lease"),
        CheckConstraint(f"(state IN ({sql_string_list(finished)})) = (finished_at IS NOT NULL)", name="finished_at"),
        CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name="error"),
    )
