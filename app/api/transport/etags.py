"""ETags of what changes: made of counters, so that a 304 needs none of what it stands for.

A job's `version` is counted by a trigger, in the transaction of the change: no read that begins after a write's answer
finds an older one, whichever process it asks.
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
from app.api.schemas.jobs.events import EventBody
from app.api.schemas.jobs.jobs import JobBody


def job_etag(organization: str, version: int, place: str) -> str:
    """`place` is what a job shows besides its own row."""
    return f'"{version}-{place}-{_shape(organization)}"'


def jobs_etag(organization: str, jobs: Iterable[tuple[str, int, str]]) -> str:
    """Of a page: (id, version, place) of each, and one more job where there is another page."""
    named = "\n".join(f"{job_id} {version} {place}" for job_id, version, place in jobs)
    return f'"{_hash(named)}-{_shape(organization)}"'


def place_tag(position: int | None, expected_start_at: datetime | None, waiting_for: str | None) -> str:
    """The place in the queue, which the forecast writes apart from the job."""
    start = 0 if expected_start_at is None else int(expected_start_at.timestamp())
    lack = "" if waiting_for is None else _hash(waiting_for)[:8]
    return f"{position or 0}.{start}.{lack}"


def events_etag(event_seq: int) -> str:
    return f'"{event_seq}-{_shape("")}"'


def checkpoints_etag(event_seq: int, version: int) -> str:
    """A checkpoint comes with an event; which of them is the job's result stands in the job."""
    return f'"{event_seq}-{version}-{_shape("")}"'


def log_etag(attempt: int, updated_at: datetime) -> str:
    return f'"{attempt}-{updated_at.timestamp():.6f}"'


def json_with(etag: str, body: Any) -> Response:
    """`body` is rendered by us and documented, so it is not held against its model once more."""
    return JSONResponse(body, headers=headers_of(etag))


def not_modified(etag: str) -> Response:
    return Response(status_code=304, headers=headers_of(etag))


def headers_of(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}


@cache
def _shape(organization: str) -> str:
    """What an unchanged row would be shown as: another release, or another organization's name, is another body."""
    fields = [name for body in (JobBody, EventBody, CheckpointBody) for name in body.model_fields]
    try:
        release = version("tunery")
    except PackageNotFoundError:
        release = ""
    return _hash(" ".join([release, organization, *fields]))[:8]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
