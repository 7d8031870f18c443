"""GET /v1/fine_tuning/jobs/{id}: the read that is polled, so it has no thread, no ORM and no response model.

The ETag is a hash of the body: whatever changes in it, the place in the queue included, ends the 304s.
"""

from __future__ import annotations

import hashlib
import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import bearer_secret, wrong_key
from app.api.deps import Engines
from app.api.ranges import is_known
from app.api.schemas.jobs import JobBody, render_job
from app.db.job_reads import job_by_key
from app.services.jobs import no_such_job

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])


@router.get(
    "/{job_id}",
    response_model=JobBody,
    responses={304: {"description": "Unchanged since the ETag in If-None-Match."}},
    summary="Get a job",
)
async def get_job(request: Request, job_id: str) -> Response:
    """Made to be polled: send the last `ETag` as `If-None-Match`, and an unchanged job is a 304 without a body."""
    engines: Engines = request.app.state.engines
    row = await job_by_key(engines.connections, bearer_secret(request), job_id)
    if row is None:
        raise wrong_key()
    if row.id is None:
        raise no_such_job(job_id)
    rendered = render_job(
        row, engines.settings.organization, row.queue_position, row.adapter_file_ids, row.expected_start_at,
        row.waiting_for,
    )  # fmt: skip
    body = json.dumps(rendered, separators=(",", ":"), ensure_ascii=False).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if is_known(request.headers, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
