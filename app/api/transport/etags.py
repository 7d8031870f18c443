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

from starlette.responses import JSONResponse, Response

from app.api.schemas.jobs.checkpoints import CheckpointBody
from app.api.schemas.jobs.jobs import JobBody
from app.api.schemas.jobs.records import EventBody


def job_etag(organization: str, version: int, queue_tag: str) -> str:
    """The ETag of a job. `queue_tag` covers the fields of the body that are not in the job's own row."""
    return f'"{version}-{queue_tag}-{_representation_tag(organization)}"'


def jobs_etag(organization: str, jobs: Iterable[tuple[str, int, str]]) -> str:
    """The ETag of a page: (id, version, queue tag) of each job, and of one more job if there is another page."""
    versions = "\n".join(f"{job_id} {version} {queue_tag}" for job_id, version, queue_tag in jobs)
    return f'"{_hash(versions)}-{_representation_tag(organization)}"'


def queue_position_tag(position: int | None, expected_start_at: datetime | None, waiting_for: str | None) -> str:
    """A tag of the queue position, which the forecast stores apart from the job."""
    start = 0 if expected_start_at is None else int(expected_start_at.timestamp())
    waiting_tag = "" if waiting_for is None else _hash(waiting_for)[:8]
    return f"{position or 0}.{start}.{waiting_tag}"


def events_etag(event_seq: int) -> str:
    return f'"{event_seq}-{_representation_tag("")}"'


def checkpoints_etag(event_seq: int, version: int) -> str:
    """A new checkpoint has an event, and a new result changes the job's version."""
    return f'"{event_seq}-{version}-{_representation_tag("")}"'


def log_etag(attempt: int, updated_at: datetime) -> str:
    return f'"{attempt}-{updated_at.timestamp():.6f}"'


def json_response(etag: str, body: Any) -> Response:
    """A JSON response without validation against the response model: the render functions are tested against it."""
    return JSONResponse(body, headers=etag_headers(etag))


def not_modified(etag: str) -> Response:
    return Response(status_code=304, headers=etag_headers(etag))


def etag_headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}


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
