"""/v1/uploads: large files in parts, as OpenAI's clients send them, or as one resumable stream."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import Caller, CallerDep
from app.api.dependencies import AppState, AppStateDep, SessionDep
from app.api.idempotency import IdempotentRequestDep, IdempotentRoute
from app.api.openapi import responses
from app.api.schemas.common import list_of
from app.api.schemas.files import CompleteUpload, CreateUpload, PartBody, UploadBody
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import list_page
from app.api.transport.request_bodies import MAX_FORM_OVERHEAD_BYTES, limit_body, read_form
from app.api.transport.resumable_upload import parse_content_range, receive_content
from app.db.tables import Upload
from app.domain.files import MAX_PART_BYTES, MAX_PARTS
from app.errors import BadRequest
from app.services.access.idempotency import fingerprint_of
from app.services.datasets.check_process import CheckProcess
from app.services.files import upload_completion, uploads
from app.services.files.files import StagedFile, is_long
from app.services.files.upload_completion import part_digests

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"], route_class=IdempotentRoute)


@router.post("", response_model=UploadBody, summary="Begin an upload")
def create_upload(body: JsonBody[CreateUpload], caller: CallerDep, session: SessionDep, app_state: AppStateDep) -> Any:
    """For files of gigabytes. This call sends no content; the upload has to be completed within an hour."""
    given = body.model_dump()
    return uploads.create(session, caller.project_id, given, app_state.settings)


@router.get("/{upload_id}", response_model=UploadBody, summary="Get an upload")
def get_upload(upload_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """The bytes received so far, and the file of a completed upload. An extension of OpenAI's API."""
    return uploads.get(session, caller.project_id, upload_id)


@router.post("/{upload_id}/parts", response_model=PartBody, summary="Add a part", openapi_extra=responses.UPLOAD_PART)
async def add_part(
    upload_id: str,
    request: Request,
    caller: CallerDep,
    app_state: AppStateDep,
    idempotent_request: IdempotentRequestDep,
) -> Any:
    """Up to 64 MiB. Parts may be sent concurrently and in any order. Sending a part again adds another part."""
    io_pools, project_id = app_state.io_pools, caller.project_id

    upload = await io_pools.write(uploads.read, app_state.sessions, project_id, upload_id)
    uploads.require_pending(upload, uploads.TAKES_NO_PARTS)
    digest = app_state.upload_digests.get_at(upload_id, upload.received_bytes)
    body = limit_body(request, MAX_PART_BYTES + MAX_FORM_OVERHEAD_BYTES, uploads.part_too_large)
    staged = await io_pools.write(
        StagedFile, app_state.storage.staging, MAX_PART_BYTES, uploads.part_too_large, part_digests(digest)
    )
    try:
        form = await read_form(io_pools, request.headers.get("content-type", ""), body, "data", (), staged.write)
        if not form.has_file:
            text = "you must provide data: a form field with the content of the part"
            raise BadRequest(text, "data", "missing_required_parameter")
        fingerprint = fingerprint_of({"fields": form.fields, "sha256": staged.sha256})
        part = await io_pools.storing.run(
            caller.key_id,
            uploads.add_part,
            app_state.sessions,
            app_state.storage,
            project_id,
            upload_id,
            staged,
            lambda session: idempotent_request.reserve(session, fingerprint),
            lambda session, added: idempotent_request.store_response(
                session, 200, PartBody.model_validate(added).model_dump_json()
            ),
        )
    finally:
        staged.discard()
    if digest is not None:
        app_state.upload_digests.store(upload_id, digest.extend(part.id, part.bytes, staged.digests[-1]))
    return part


@router.get("/{upload_id}/parts", response_model=list_of(PartBody), summary="List the parts of an upload")
def list_parts(upload_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """All parts in one page, in order of arrival, so that a client can continue after an interruption. An extension."""
    return list_page(uploads.posted_parts(session, caller.project_id, upload_id), MAX_PARTS)


@router.post(
    "/{upload_id}/complete",
    response_model=UploadBody,
    summary="Complete an upload",
)
async def complete_upload(
    upload_id: str, request: Request, body: JsonBody[CompleteUpload], caller: CallerDep, app_state: AppStateDep
) -> Any:
    """Assemble the parts into a file, in the order of `part_ids`. Repeating the request returns the same file."""
    return await _complete(request, app_state, caller, upload_id, body.part_ids, body.md5)


@router.post("/{upload_id}/cancel", response_model=UploadBody, summary="Cancel an upload")
def cancel_upload(upload_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """A cancelled upload accepts no more parts. Cancelling it again returns the same upload."""
    return uploads.cancel(session, caller.project_id, upload_id)


@router.put(
    "/{upload_id}/content",
    response_model=UploadBody,
    summary="Send the content as one stream",
    openapi_extra=responses.UPLOAD_CONTENT,
)
async def put_content(upload_id: str, request: Request, caller: CallerDep, app_state: AppStateDep) -> Any:
    """The raw bytes, for `curl -T`. The last byte completes the upload. An extension of OpenAI's API.

    After an interruption, `HEAD` returns the number of stored bytes in `Upload-Offset`; continue with
    `Content-Range: bytes OFFSET-LAST/TOTAL` (`curl -C OFFSET -T`). Without Content-Range the content starts again.
    """
    content_range = parse_content_range(request.headers)
    upload = await app_state.io_pools.write(
        uploads.begin_writing,
        app_state.sessions,
        app_state.storage,
        caller.project_id,
        upload_id,
        content_range.start,
    )
    if await receive_content(request, app_state, caller.key_id, upload, content_range) == upload.bytes:
        return await _complete(request, app_state, caller, upload_id, None, None)
    return await app_state.io_pools.write(uploads.read, app_state.sessions, caller.project_id, upload_id)


@router.head("/{upload_id}/content", include_in_schema=False)
def head_content(upload_id: str, caller: CallerDep, session: SessionDep) -> Response:
    """The progress of the stream, in the headers of the IETF's draft on resumable uploads."""
    upload, stored_bytes = uploads.progress(session, caller.project_id, upload_id)
    headers = {
        "Upload-Offset": str(stored_bytes),
        "Upload-Length": str(upload.bytes),
        "Upload-Complete": "?1" if upload.file_id else "?0",
        "Cache-Control": "no-store",
    }
    return Response(headers=headers)


async def _complete(
    request: Request, app_state: AppState, caller: Caller, upload_id: str, part_ids: list[str] | None, md5: str | None
) -> Upload:
    io_pools, settings = app_state.io_pools, app_state.settings
    async with io_pools.key_lock(upload_id):
        upload = await io_pools.write(uploads.read, app_state.sessions, caller.project_id, upload_id)
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
        if upload.file_id is None and is_long(upload.purpose, upload.bytes):
            completed = await app_state.check_limiter.run(request, caller.key_id, True, complete)
        else:
            completed = await io_pools.finishing(upload.bytes).run(caller.key_id, complete, CheckProcess())
    return completed
