"""Base classes and helpers of all bodies."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WrapSerializer, create_model

from app.domain.error_text.validation_text import Parsed, check_shape
from app.domain.jobs.spec import LoraSpec
from app.errors import combine_errors

# A time in a query. The maximum is one second less than the last datetime, as the code adds one second.
UnixSeconds = Annotated[int, Field(ge=0, le=253_402_300_798)]
# A time of a row, in OpenAPI's format: whole seconds since 1970.
UnixTime = Annotated[int, BeforeValidator(lambda time: unix_seconds(time) if isinstance(time, datetime) else time)]


class Body(BaseModel):
    """A closed object, read from a row by the names of its fields or by their `validation_alias`.

    A key that the OpenAPI document does not have is an error. The text below a field is its description there.
    """

    model_config = ConfigDict(
        extra="forbid",
        from_attributes=True,
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=True,
        json_schema_serialization_defaults_required=True,
    )


class ErrorDetail(Body):
    message: str
    type: str
    """`invalid_request_error`, or `server_error` if the request was valid."""
    param: str | None
    """The part of the request, as a dotted path; with several problems that of the first."""
    code: str | None
    """The error code for programs."""
    doc_url: str | None
    """The path of the code's entry on the page of errors, on the same server; null if it shows no documentation."""


class ErrorBody(Body):
    """The body of every error response."""

    error: ErrorDetail
    """The error."""


class WholeList(Body):
    """A list in one page."""

    object: Literal["list"] = "list"


class ListBody(WholeList):
    has_more: bool
    first_id: str | None
    last_id: str | None


@cache
def list_of(item: type[Body], base: type[WholeList] = ListBody) -> type[WholeList]:
    """The list whose `data` are such bodies: `FileList` of FileBody."""
    return create_model(f"{item.__name__.removesuffix('Body')}List", __base__=base, data=(list[item], ...))  # type: ignore[valid-type]


class JobPart(Body):
    """What a job has several of."""

    id: str
    created_at: UnixTime
    fine_tuning_job_id: str = Field(validation_alias="job_id")


# With `experts` also where it is false, so not stored. A lambda, as OpenAPI would show the return type of a function.
LoraBody = Annotated[LoraSpec, WrapSerializer(lambda lora, handler: {"experts": lora.experts} | handler(lora))]


class WarningBody(Body):
    """A problem that does not fail a job, but may be unintended."""

    code: str
    """The kind of warning, such as `duplicate_rows`."""
    message: str
    """The problem, its effect, and what to do."""
    file: str | None
    """The id of the file with these rows; null: the warning is about the request."""
    count: int
    """The number of rows."""
    first_lines: list[int]
    """Line numbers of the first ten of these rows, counted from 1."""


class Deleted(Body):
    id: str
    object: str
    deleted: Literal[True] = True


def deleted(body: type[Body], id: str) -> Deleted:
    """The response for a deleted object, whose type is that of `body`."""
    return Deleted(id=id, object=get_args(body.model_fields["object"].annotation)[0])


def unix_seconds(time: datetime) -> int:
    """Whole seconds since 1970, OpenAI's format of times."""
    return int(time.timestamp())


def utc_datetime(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Strict(Body):
    """Strict JSON types: "7" is not a number, and 7 is not text."""

    model_config = ConfigDict(extra="forbid", strict=True)


def parse_body(model: type[Parsed], body: Mapping[str, Any]) -> Parsed:
    """Parse a body whose shape is all there is to check. Raises BadRequest with all problems."""
    parsed, problems = check_shape(model, body)
    if parsed is None or problems:
        raise combine_errors(problems)
    return parsed
