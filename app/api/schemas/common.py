"""Base classes and helpers of all bodies."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# A time in a query. The maximum is one second less than the last datetime, as the code adds one second.
UnixSeconds = Annotated[int, Field(ge=0, le=253_402_300_798)]


class Body(BaseModel):
    """A closed object: a key that the OpenAPI document does not have is an error."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Body):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Body):
    """The body of every error response."""

    error: ErrorDetail


class ListBody(Body):
    object: Literal["list"]
    has_more: bool
    first_id: str | None
    last_id: str | None


class WarningBody(Body):
    """A problem that does not fail a job, but may be unintended."""

    code: str
    message: str
    file: str | None
    count: int
    first_lines: list[int]


class Deleted(Body):
    id: str
    object: str
    deleted: Literal[True]


def unix_seconds(time: datetime) -> int:
    """Whole seconds since 1970, OpenAI's format of times."""
    return int(time.timestamp())


def utc_datetime(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def unix_seconds_or_none(time: datetime | None) -> int | None:
    return None if time is None else unix_seconds(time)
