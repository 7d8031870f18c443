"""docs/errors.md: all errors, their handling by the official client, and what to do."""

from __future__ import annotations

from app.domain.jobs.failure_help import ATTEMPT_REASONS, JOB_ERRORS
from tools.api_reference.error_codes import ERROR_CODES, ErrorCode

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
SOURCES = "tools/api_reference/error_codes.py and app/domain/jobs/failure_help.py"
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


def exception_of(status: int) -> str:
    """The exception class of the official client."""
    return "InternalServerError" if status >= 500 else EXCEPTIONS.get(status, "APIStatusError")


def is_retried(error_code: ErrorCode) -> bool:
    """Whether the official client retries the request by default."""
    return not error_code.is_final and (error_code.status in RETRIED_STATUSES or error_code.status >= 500)


def errors_page() -> str:
    return "\n".join([f"# Errors\n\n{NOTE}", INTRO, _request_errors(), _job_errors(), _attempt_outcomes()])


def _request_errors() -> str:
    parts = ["## Errors of requests\n"]
    for status, retried in sorted({(each.status, is_retried(each)) for each in ERROR_CODES}):
        retry_note = "retried by the client" if retried else "not retried"
        parts.append(f"### {status}: `{exception_of(status)}`, {retry_note}\n")
        parts.append("| code | cause | what to do | example |\n|---|---|---|---|")
        parts += [
            f"| `{each.code}` | {_cell(each.cause)} | {_cell(each.remedy)} | {_cell(each.message)} |"
            for each in ERROR_CODES
            if (each.status, is_retried(each)) == (status, retried)
        ]
        parts.append("")
    return "\n".join(parts)


def _job_errors() -> str:
    head = """\
## Errors of jobs

Errors of the data and of training appear in the job: `status` is `failed` and `job.error` has `code`, `message` and
`param`. The client raises no exception. A failed job is not retried; create another one.

| code | cause | what to do | example |
|---|---|---|---|"""
    rows = [
        f"| `{reason}` | {_cell(error_code.cause)} | {_cell(error_code.remedy)} | {_cell(error_code.message)} |"
        for reason, error_code in JOB_ERRORS.items()
    ]
    return "\n".join([head, *rows]) + "\n"


def _attempt_outcomes() -> str:
    head = """\
## Reasons for the end of an attempt

An attempt can end without failing the job, which then gets another state. The reason is in `data.reason` of the event
that reports the end, and in the list of the job's attempts (`tunery jobs attempts JOB`).

| reason | new state | meaning |
|---|---|---|"""
    rows = [f"| `{reason}` | {state} | {_cell(text)} |" for reason, (state, text) in ATTEMPT_REASONS.items()]
    return "\n".join([head, *rows]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
