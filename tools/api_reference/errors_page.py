"""docs/errors.md: what can go wrong, what the official client makes of it, and what to do."""

from __future__ import annotations

from tools.api_reference.error_code import ErrorCode
from tools.api_reference.error_codes import ERROR_CODES
from tools.api_reference.job_errors import ENDINGS, JOB_ERRORS

EXCEPTIONS = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError",
    409: "ConflictError", 422: "UnprocessableEntityError", 429: "RateLimitError",
}  # fmt: skip
RETRIED = (408, 409, 429)  # and 500 and above
NOTE = "<!-- Written by `make reference` from tools/api_reference/error_codes.py and job_errors.py. -->\n"
INTRO = """\
Every error has one shape, whatever its status:

```json
{"error": {"message": "...", "type": "invalid_request_error", "param": "lora.r", "code": "invalid_value"}}
```

`message` says what was seen, what is allowed and what to do; with several problems it lists all of them, and `param`
(a dotted path) and `code` are those of the first. `type` is `invalid_request_error` where the request has to change,
`server_error` where it was good, and of a 429 `requests` (too many a second) or `insufficient_quota`. Every answer has
an `x-request-id`: give it to the operator, whose log has the rest under it.

The official client makes an exception of each status, with `e.code`, `e.param`, `e.message` and `e.request_id`. It
sends some requests twice more by itself (`max_retries=2`); that is why a wrong state is a 400 here and no 409. Where
that is of no use though the status is one of those, the answer has `x-should-retry: false`, and the client does not.
"""


def exception_of(status: int) -> str:
    """What the official client raises."""
    return "InternalServerError" if status >= 500 else EXCEPTIONS.get(status, "APIStatusError")


def is_retried(one: ErrorCode) -> bool:
    """By the official client, twice, without being asked to."""
    return not one.is_final and (one.status in RETRIED or one.status >= 500)


def errors_page() -> str:
    return "\n".join([f"# Errors\n\n{NOTE}", INTRO, _answers(), _of_jobs(), _endings()])


def _answers() -> str:
    parts = ["## Of requests\n"]
    for status, retried in sorted({(one.status, is_retried(one)) for one in ERROR_CODES}):
        said = "sent again by the client" if retried else "not sent again"
        parts.append(f"### {status}: `{exception_of(status)}`, {said}\n")
        parts.append("| code | cause | what to do | for example |\n|---|---|---|---|")
        parts += [
            f"| `{one.code}` | {_cell(one.cause)} | {_cell(one.remedy)} | {_cell(one.message)} |"
            for one in ERROR_CODES
            if (one.status, is_retried(one)) == (status, retried)
        ]
        parts.append("")
    return "\n".join(parts)


def _of_jobs() -> str:
    head = """\
## Of jobs

What is wrong with the data, or goes wrong in training, is told by the job: `status` is `failed` and `job.error` has
`code`, `message` and `param`. Nothing is raised. A failed job is not tried again; create another one.

| code | cause | what to do | for example |
|---|---|---|---|"""
    rows = [
        f"| `{reason}` | {_cell(one.cause)} | {_cell(one.remedy)} | {_cell(one.message)} |"
        for reason, one in JOB_ERRORS.items()
    ]
    return "\n".join([head, *rows]) + "\n"


def _endings() -> str:
    head = """\
## Of attempts

An attempt at a job may end without the job having failed. These reasons stand in the events and move the job elsewhere.

| reason | the job goes to | what it means |
|---|---|---|"""
    rows = [f"| `{reason}` | {state} | {_cell(text)} |" for reason, (state, text) in ENDINGS.items()]
    return "\n".join([head, *rows]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
