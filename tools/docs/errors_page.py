"""reference/errors.md: all errors, their handling by the official client, and what to do, by the template beside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from app.bad_request_codes import ErrorCode
from app.domain.jobs.states import JobState, Reason
from app.errors import TuneryError
from tools.docs.api_pages import templates

EXCEPTIONS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
}
RETRIED_STATUSES = (408, 409, 429)  # and 500 and above


class Response(NamedTuple):
    status: int
    is_retried: bool  # by the official client, by default
    is_final: bool  # `x-should-retry: false`
    error: ErrorCode


def responses(error: type[TuneryError] = TuneryError) -> Iterator[Response]:
    """The responses of an error class and its subclasses."""
    is_retried = not error.is_final and (error.status in RETRIED_STATUSES or error.status >= 500)
    yield from (Response(error.status, is_retried, error.is_final, code) for code in vars(error).get("codes", ()))
    for child in error.__subclasses__():
        yield from responses(child)


def exception_of(status: int) -> str:
    """The exception class of the official client."""
    return "InternalServerError" if status >= 500 else EXCEPTIONS.get(status, "APIStatusError")


def errors_page() -> str:
    failures = [reason for reason in Reason if reason.final_state == JobState.FAILED]
    return (
        templates()
        .get_template("errors.md.jinja")
        .render(
            by_status=groupby(sorted(responses()), key=itemgetter(0, 1)),
            exception_of=exception_of,
            failures=failures,
            others=[reason for reason in Reason if reason not in failures],
        )
    )
