"""What every body shares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Of a moment in the query. Ends one second before the year 10000, as one more second must still be a date.
UnixSeconds = Annotated[int, Field(ge=0, le=253_402_300_798)]


class Body(BaseModel):
    """Closed: a key that the document does not name is a mistake on either side."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Body):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Body):
    """Every error, whatever its status."""

    error: ErrorDetail


class ListBody(Body):
    object: Literal["list"]
    has_more: bool
    first_id: str | None
    last_id: str | None


class WarningBody(Body):
    """Of what a job takes although it may not be meant."""

    code: str
    message: str
    file: str | None
    count: int
    first_lines: list[int]


class Deleted(Body):
    id: str
    object: str
    deleted: Literal[True]


def unix(moment: datetime) -> int:
    """OpenAI's times are whole seconds since 1970."""
    return int(moment.timestamp())


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix(moment)
