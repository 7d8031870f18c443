"""/v1/uploads: large files in parts, as OpenAI's clients send them, and as one stream for plain HTTP clients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import Caller, CallerDep
from app.api.dependencies import AppState, AppStateDep, SessionDep
from app.api.idempotency import IdempotentRequestDep, IdempotentRoute
from app.api.openapi.examples import uploads as examples
from app.api.schemas.jobs.requests import Parsed, check_shape
from app.api.schemas.uploads import (
    CompleteUpload,  # fmt: skip
    CreateUpload,
    PartBody,
    PartList,
    UploadBody,
    new_upload,
    render_part,
    render_upload,
)
from app.api.transport.content_range import parse_content_range
from app.api.transport.json_body import JsonBodyDep
from app.api.transport.multipart import MAX_FORM_OVERHEAD_BYTES, read_form
from app.api.transport.pagination import list_page
from app.api.transport.resumable_upload import receive_content
from app.api.transport.upload_io import limit_body
from app.db.engine import transaction
from app.domain.uploads import MAX_PART_BYTES, MAX_PARTS
from app.errors import BadRequest, combine_errors
from app.services.access.idempotency import fingerprint_of
from app.services.datasets.check_process import Check
from app.services.datasets.line_check import needs_process
from app.services.files import upload_completion, upload_content, uploads
from app.services.files.ingest import StagedFile
from app.services.files.rolling_digest import part_digests

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"], route_class=IdempotentRoute)


@router.post("", response_model=UploadBody, summary="Begin an upload", openapi_extra=examples.CREATE_UPLOAD_BODY)
def create_upload(body: JsonBodyDep, caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """For files of gigabytes: nothing is sent yet. It has to be completed within an hour."""
    settings = app_state.settings
    new = new_upload(_parsed(CreateUpload, body))
    seen = uploads.create(session, caller.project_id, new, settings.upload_ttl_seconds, settings.max_upload_bytes)
    return render_upload(seen)


@router.get("/{upload_id}", response_model=UploadBody, summary="Get an upload")
def get_upload(upload_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Ours: how far it came, and its file once it is complete."""
    return render_upload(uploads.get(session, caller.project_id, upload_id))


@router.post(
    "/{upload_id}/parts", response_model=PartBody, summary="Add a part", openapi_extra=examples.UPLOAD_PART_BODY
)
async def add_part(
    upload_id: str, request: Request, caller: CallerDep, app_state: AppStateDep, once: IdempotentRequestDep
) -> Any:
    """Up to 64 MiB; several at once, in any order. A part that is sent again is another part."""
    io_pools, project_id = app_state.io_pools, caller.project_id
    seen = await io_pools.write(uploads.check_pending, app_state.sessions, project_id, upload_id)
    carried = app_state.upload_digests.get_at(upload_id, seen.received_bytes)
    body = limit_body(request, MAX_PART_BYTES + MAX_FORM_OVERHEAD_BYTES, uploads.part_too_large)
    staged = await io_pools.write(
        StagedFile, app_state.storage.staging, MAX_PART_BYTES, uploads.part_too_large, part_digests(carried)
    )
    try:
        form = await read_form(io_pools, request.headers.get("content-type", ""), body, "data", (), staged.write)
        if not form.has_file:
            text = "you must provide data: a form field with the part's bytes"
            raise BadRequest(text, "data", "missing_required_parameter")
        part = await io_pools.store(
            caller.key_id, uploads.add_part, app_state.sessions, app_state.storage, project_id, upload_id, staged,
            lambda session: once.begin(session, fingerprint_of({"fields": form.fields, "sha256": staged.sha256})),
            lambda session, added: once.end(session, 200, json.dumps(render_part(added))),
        )  # fmt: skip
    finally:
        staged.discard()
    if carried is not None:
        app_state.upload_digests.store(upload_id, carried.extend(part.id, part.bytes, staged.digests[-1]))
    return render_part(part)


@router.get("/{upload_id}/parts", response_model=PartList, summary="List the parts of an upload")
def list_parts(upload_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Ours: what has arrived, in that order; from there a client goes on after a break. All in one page."""
    return list_page(uploads.posted_parts(session, caller.project_id, upload_id), MAX_PARTS, render_part)


@router.post(
    "/{upload_id}/complete", response_model=UploadBody, summary="Complete an upload",
    openapi_extra=examples.COMPLETE_UPLOAD_BODY,
)  # fmt: skip
async def complete_upload(
    upload_id: str, request: Request, body: JsonBodyDep, caller: CallerDep, app_state: AppStateDep
) -> Any:
    """The parts become a file, in the order of `part_ids`; the same request again answers the same file."""
    asked = await app_state.check_limiter.run_query(caller.key_id, partial(_parsed, CompleteUpload, body))
    return await _complete(request, app_state, caller, upload_id, asked.part_ids, asked.md5)


@router.post("/{upload_id}/cancel", response_model=UploadBody, summary="Cancel an upload")
def cancel_upload(upload_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Takes no more parts; cancelling a cancelled upload answers the same upload."""
    return render_upload(uploads.cancel(session, caller.project_id, upload_id))


@router.put(
    "/{upload_id}/content", response_model=UploadBody, summary="Send the content as one stream",
    openapi_extra=examples.UPLOAD_CONTENT_BODY,
)  # fmt: skip
async def put_content(upload_id: str, request: Request, caller: CallerDep, app_state: AppStateDep) -> Any:
    """Ours: the bytes as they are, for `curl -T`. The last byte completes the upload.

    After a break, `HEAD` tells in `Upload-Offset` how much is here; `Content-Range: bytes OFFSET-LAST/TOTAL` goes on
    from there (`curl -C OFFSET -T`). Without Content-Range the content begins anew.
    """
    span = parse_content_range(request.headers)
    writer = await app_state.io_pools.write(
        upload_content.begin_writing, app_state.sessions, app_state.storage, caller.project_id, upload_id, span.start
    )
    if await receive_content(request, app_state, caller.key_id, writer, span) == writer.total_bytes:
        return await _complete(request, app_state, caller, upload_id, None, None)
    return render_upload(await app_state.io_pools.write(_seen, app_state, caller.project_id, upload_id))


@router.head("/{upload_id}/content", include_in_schema=False)
def head_content(upload_id: str, caller: CallerDep, session: SessionDep) -> Response:
    """How far the stream came. The names of the headers are those of the IETF's draft on resumable uploads."""
    seen, there_bytes = upload_content.progress(session, caller.project_id, upload_id)
    headers = {
        "Upload-Offset": str(there_bytes),
        "Upload-Length": str(seen.upload.bytes),
        "Upload-Complete": "?1" if seen.upload.file_id else "?0",
        "Cache-Control": "no-store",
    }
    return Response(headers=headers)


async def _complete(
    request: Request, app_state: AppState, caller: Caller, upload_id: str, part_ids: list[str] | None, md5: str | None
) -> dict[str, Any]:
    io_pools, settings = app_state.io_pools, app_state.settings
    async with io_pools.key_lock(upload_id):
        upload = (await io_pools.write(_seen, app_state, caller.project_id, upload_id)).upload
        complete = partial(
            upload_completion.complete,
            app_state.sessions,
            app_state.storage,
            app_state.upload_digests,
            caller.project_id,
            upload_id,
            part_ids,
            md5,
            settings.max_line_bytes,
        )
        if upload.file_id is None and needs_process(upload.purpose, upload.bytes):
            seen = await app_state.check_limiter.run(request, caller.key_id, True, complete)
        else:
            seen = await io_pools.finish(caller.key_id, upload.bytes, complete, Check())
    return render_upload(seen)


def _seen(app_state: AppState, project_id: str, upload_id: str) -> uploads.UploadView:
    with transaction(app_state.sessions) as session:
        return uploads.get(session, project_id, upload_id)


def _parsed(model: type[Parsed], body: Mapping[str, Any]) -> Parsed:
    parsed, problems = check_shape(model, body)
    if problems or parsed is None:
        raise combine_errors(problems)
    return parsed
