"""What the tables that are queues share: the lease of all, and the state of exports, evaluations and registrations."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import now, sql_string_list

LEASE_WHOLE = "(lease_owner IS NULL) = (lease_expires_at IS NULL)"


class Leased:
    """The columns of a lease; `app.db.jobs.leases` writes them."""

    id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(server_default="0")  # the fencing token: every claim increments it
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]


class LeasedRow(Leased):
    """The columns of the state and of the end, too."""

    state: Mapped[str] = mapped_column(server_default="queued")
    crash_streak: Mapped[int] = mapped_column(server_default="0")
    run_after: Mapped[datetime] = now()
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
        CheckConstraint(LEASE_WHOLE, name="lease_whole"),
        CheckConstraint("(state = 'running') = (lease_owner IS NOT NULL)", name="running_has_lease"),
        CheckConstraint(f"(state IN ({sql_string_list(finished)})) = (finished_at IS NOT NULL)", name="finished_at"),
        CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name="error"),
    )
