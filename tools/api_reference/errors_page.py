"""docs/errors.md: all errors, their handling by the official client, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from app.bad_request_codes import ErrorCode
from app.domain.jobs.states import JobState, Reason
from app.errors import TuneryError

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
SOURCES = "app/errors.py, app/bad_request_codes.py and app/domain/jobs/states.py"
NOTE = f"<!-- Written by `make reference` from {SOURCES}. -->\n"
INTRO = """\
Every error has one shape, whatever its status:

```json
{"error": {"message": "...", "type": "invalid_request_error", "param": "lora.r", "code": "invalid_value"}}
```

`message` has the problem, the allowed values and what to do; with several problems it lists all of them, and `param`
(a dotted path) and `code` are those of the first. `type` is `invalid_request_error` if the request has to change,
`server_error` if it was valid, and for a 429 `requests` (rate limit) or `insufficient_quota`. Every response has an
`x-request-id`: give it to the operator, whose log has the details under it.

The official client raises an exception for each status, with `e.code`, `e.param`, `e.message` and `e.request_id`. It
retries some statuses twice by default (`max_retries=2`); that is why a wrong state is a 400 here, not a 409. If a retry
is useless despite the status, the response has `x-should-retry: false`, and the client does not retry.
"""


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
    return "\n".join([f"# Errors\n\n{NOTE}", INTRO, _request_errors(), _job_errors(), _attempt_outcomes()])


def _request_errors() -> str:
    parts = ["## Errors of requests\n"]
    every = sorted(responses())
    for status, is_retried in sorted({(each.status, each.is_retried) for each in every}):
        retry_note = "retried by the client" if is_retried else "not retried"
        parts.append(f"### {status}: `{exception_of(status)}`, {retry_note}\n")
        parts.append("| code | cause | what to do | example |\n|---|---|---|---|")
        parts += [_row(f"`{code}`", *texts) for *kind, _, (code, *texts) in every if kind == [status, is_retried]]
        parts.append("")
    return "\n".join(parts)


def _job_errors() -> str:
    head = """\
## Errors of jobs

Errors of the data and of training appear in the job: `status` is `failed` and `job.error` has `code`, `message` and
`param`. The client raises no exception. A failed job is not retried; create another one.

| code | cause | what to do | example |
|---|---|---|---|"""
    failures = [reason for reason in Reason if reason.final_state == JobState.FAILED]
    rows = [_row(f"`{each}`", each.cause, each.remedy or "", each.message or "") for each in failures]
    return "\n".join([head, *rows]) + "\n"


def _attempt_outcomes() -> str:
    head = """\
## Reasons for the end of an attempt

An attempt can end without failing the job, which then gets another state. The reason is in `data.reason` of the event
that reports the end, and in the list of the job's attempts (`tunery jobs attempts JOB`).

| reason | new state | meaning |
|---|---|---|"""
    others = [reason for reason in Reason if reason.final_state != JobState.FAILED]
    rows = [_row(f"`{each}`", each.final_state, each.cause) for each in others]
    return "\n".join([head, *rows]) + "\n"


def _row(*cells: str) -> str:
    texts = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"
