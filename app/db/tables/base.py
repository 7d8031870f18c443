"""The declarative base of all tables: names of constraints, column types, default times, and the columns of a lease."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, cast

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Identity, MetaData, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Key = Annotated[str, mapped_column(primary_key=True)]
Seq = Annotated[int, mapped_column(Identity(), unique=True)]  # the order of creation
NumberKey = Annotated[int, mapped_column(primary_key=True, autoincrement=False)]
ProjectId = Annotated[str, mapped_column(ForeignKey("projects.id"))]
ProjectKey = Annotated[str, mapped_column(ForeignKey("projects.id"), primary_key=True)]
IndexedProjectId = Annotated[str, mapped_column(ForeignKey("projects.id"), index=True)]
JobId = Annotated[str, mapped_column(ForeignKey("jobs.id"))]
JobKey = Annotated[str, mapped_column(ForeignKey("jobs.id"), primary_key=True)]
IndexedJobId = Annotated[str, mapped_column(ForeignKey("jobs.id"), index=True)]
CheckpointId = Annotated[str, mapped_column(ForeignKey("checkpoints.id"), index=True)]
# By default the server's clock at the statement, not at the transaction's begin.
Time = Annotated[datetime, mapped_column(server_default=func.clock_timestamp())]
Count = Annotated[int, mapped_column(server_default="0")]
Flag = Annotated[bool, mapped_column(server_default=text("false"))]
Strings = Annotated[list[str], mapped_column(server_default=text("'[]'::jsonb"))]


LEASE_WHOLE = "(lease_owner IS NULL) = (lease_expires_at IS NULL)"


class Base(DeclarativeBase):
    __allow_unmapped__ = True  # a plain attribute is no column: a service sets it for a response
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy declares it so)
        str: Text,
        int: BigInteger,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),  # None is stored as SQL NULL, never as JSON null
        list[str]: JSONB(none_as_null=True),
        list[dict[str, Any]]: JSONB(none_as_null=True),
    }


def core_table(model: type[Base]) -> Table:
    """The Core table of a model, for writes without an ORM object: they cost a third of those with one."""
    return cast(Table, model.__table__)


def sql_string_list(values: Any) -> str:
    """`'a', 'b'`: the values of an enum, sorted, for `IN (...)` of a check constraint."""
    return ", ".join(f"'{value}'" for value in sorted(values))


def checks(**conditions: str) -> tuple[CheckConstraint, ...]:
    """A CHECK constraint of each name."""
    return tuple(CheckConstraint(condition, name=name) for name, condition in conditions.items())


class Leased:
    """The columns of a lease; `app.db.jobs.leases` writes them."""

    id: Mapped[Key]
    attempt: Mapped[Count]  # the fencing token: every claim increments it
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]


class LeasedRow(Leased):
    """The columns of the state and of the end, too."""

    state: Mapped[str] = mapped_column(server_default="queued")
    crash_streak: Mapped[Count]
    run_after: Mapped[Time]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]

    @property
    def error(self) -> dict[str, Any] | None:
        """The error as a response has it."""
        return {"code": self.error_code, "message": self.error_message or ""} if self.error_code else None


class CheckpointWork(LeasedRow):
    """Work on a checkpoint: the request, which is immutable."""

    seq: Mapped[Seq]
    project_id: Mapped[ProjectId]
    job_id: Mapped[JobId]
    checkpoint_id: Mapped[CheckpointId]
    created_at: Mapped[Time]
    model: Mapped[str]  # the checkpoint's fine_tuned_model_checkpoint
    base_model: Mapped[str]
    step_number: Mapped[int]
    adapter_file_ids: Mapped[list[str]]


def lease_constraints(states: type[StrEnum], finished: Iterable[StrEnum]) -> tuple[CheckConstraint, ...]:
    return checks(
        state=f"state IN ({sql_string_list(states)})",
        lease_whole=LEASE_WHOLE,
        running_has_lease="(state = 'running') = (lease_owner IS NOT NULL)",
        finished_at=f"(state IN ({sql_string_list(finished)})) = (finished_at IS NOT NULL)",
        error="(state = 'failed') = (error_code IS NOT NULL)",
    )
