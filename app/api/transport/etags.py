"""ETags of mutable objects, made of counters: a 304 does not read the object itself.

A trigger increments a job's `version` in the transaction of the change: a read that begins after the response to a
write sees that version or a later one, in every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from app.api.schemas.jobs import JobBody
from app.api.schemas.records import CheckpointBody, EventBody


def job_etag(organization: str, row: Any) -> str:
    """The ETag of a row of `app.db.fast_reads.job_reads.VERSION`, or of one that has its columns."""
    return f'"{_version(row)}-{_representation_tag(organization)}"'


def jobs_etag(organization: str, rows: Iterable[Any]) -> str:
    """The ETag of a page: of the rows of its jobs, and of one more job if there is another page."""
    versions = "\n".join(f"{row.id} {_version(row)}" for row in rows)
    return f'"{_hash(versions)}-{_representation_tag(organization)}"'


def events_etag(event_seq: int) -> str:
    return f'"{event_seq}-{_representation_tag("")}"'


def checkpoints_etag(event_seq: int, version: int) -> str:
    """A new checkpoint has an event, and a new result changes the job's version."""
    return f'"{event_seq}-{version}-{_representation_tag("")}"'


def log_etag(attempt: int, updated_at: datetime) -> str:
    return f'"{attempt}-{updated_at.timestamp():.6f}"'


def json_response(etag: str, body: Any) -> Response:
    """The JSON of a body that needs no validation by the route's response model."""
    return Response(to_json(body), headers=etag_headers(etag), media_type="application/json")


def not_modified(etag: str) -> Response:
    return Response(status_code=304, headers=etag_headers(etag))


def etag_headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}


def _version(row: Any) -> str:
    """The job's version, and the queue position, which the forecast stores apart from the job."""
    start = 0 if row.expected_start_at is None else int(row.expected_start_at.timestamp())
    waiting_tag = "" if row.waiting_for is None else _hash(row.waiting_for)[:8]
    return f"{row.version}-{row.queue_position or 0}.{start}.{waiting_tag}"


@cache
def _representation_tag(organization: str) -> str:
    """A tag of everything but the rows that shapes a body: release, organization and field names."""
    fields = [name for body in (JobBody, EventBody, CheckpointBody) for name in body.model_fields]
    try:
        release = version("tunery")
    except PackageNotFoundError:
        release = ""
    return _hash(" ".join([release, organization, *fields]))[:8]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
