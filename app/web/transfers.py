"""Uploads from the browser in pieces, and downloads: the browser has no API key, so this process passes both on.

A JSONL file goes on to the API; a table waits here for the choice of its columns.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from app.domain.error_text.validation_text import error_sentence
from app.domain.files import MIME_TYPE, completion_seconds
from app.web.api_client import RESPONSE_SECONDS, ApiClient, ApiError, Json
from app.web.dropped_tables import DroppedTable, DroppedTableError, TableStore
from app.web.sessions import Sessions, SessionStore, WebSession
from app.web.sign_in import is_same_origin

MAX_PIECE_BYTES = 16 << 20
MAX_CREATE_BYTES = 1 << 16
TABLE_NAMES = (".csv", ".tsv", ".xlsx", ".parquet")
SHEET_NAMES = (".xls", ".ods", ".numbers")
REFUSED_CODE = "invalid_training_file"  # of a line that is no JSON object
DISK_FULL = "The dashboard's disk is full: {reason}. Ask the operator for space, then try again; the upload continues."
NO_UPLOAD = "An upload has the name of a file and its size in bytes, at least 1: an empty file cannot be uploaded."
KEPT_HEADERS = ("content-length", "content-range", "etag", "content-digest", "accept-ranges")
CHUNK_BYTES = 1 << 18

routes = APIRouter()
REFUSALS = (ApiError, ValidationError, RequestValidationError, OSError)

ObjectId = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,100}$")]


class BrowserUpload(BaseModel):
    """The body of a create."""

    model_config = ConfigDict(strict=True)

    filename: Annotated[str, Field(min_length=1)]
    bytes: Annotated[int, Field(ge=1)]


async def refuse(_request: Request, error: Exception) -> Response:
    """The response to a failed upload, as {message}."""
    status = 400
    body: Json = {"message": str(error)}
    if isinstance(error, ApiError):
        status, body["is_refused"] = error.status or 503, error.code == REFUSED_CODE
    elif isinstance(error, RequestValidationError):
        body["message"] = "; ".join(f"{each['loc'][-1]}: {error_sentence(each)}" for each in error.errors())
    elif isinstance(error, ValidationError):
        body["message"] = NO_UPLOAD
    elif isinstance(error, OSError):
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        status, body["message"] = 507, DISK_FULL.format(reason=error.strerror)
    return JSONResponse(body, status)


def _tables(request: Request) -> TableStore:
    tables: TableStore = request.app.state.tables
    return tables


def _signed_in(request: Request, sessions: Sessions) -> WebSession:
    session = sessions.of(request)
    if session is None:
        raise ApiError("Sign in again: the session has ended.", 401)
    if not is_same_origin(request):
        raise ApiError("The request came from another site.", 403)
    return session


Uploader = Annotated[WebSession, Depends(_signed_in)]


def _table_of(request: Request, session: Uploader, upload_id: ObjectId) -> DroppedTable | None:
    """The table of the upload; None for an upload of the API."""
    return _tables(request).get(session.token, upload_id) if upload_id.startswith("table-") else None


Table = Annotated[DroppedTable | None, Depends(_table_of)]


@routes.post("/uploads")
async def create(session: Uploader, request: Request) -> Json:
    new = BrowserUpload.model_validate_json(await _read_body(request, MAX_CREATE_BYTES))
    filename, size_bytes = new.filename, new.bytes
    if filename.lower().endswith(TABLE_NAMES):
        return _table_state(_tables(request).create(session.token, filename, size_bytes))
    if filename.lower().endswith(SHEET_NAMES):
        text = "This kind of spreadsheet cannot be read. Save it as .xlsx or CSV (UTF-8), and drop that file."
        raise ApiError(text, 400, REFUSED_CODE)
    return await _upload_state(session.api, await create_upload(session.api, filename, size_bytes))


@routes.get("/uploads/{upload_id}")
async def read(session: Uploader, table: Table, upload_id: ObjectId) -> Json:
    if table:
        return _table_state(table)
    return await _upload_state(session.api, await session.api.get(f"uploads/{upload_id}"))


@routes.put("/uploads/{upload_id}/content")
async def append(session: Uploader, request: Request, upload_id: ObjectId, offset: int) -> Json:
    """Store a piece that begins at `offset`. One that the server has already is left out."""
    piece = await _read_body(request, MAX_PIECE_BYTES)
    if table := _table_of(request, session, upload_id):  # after the body, as the table may expire while that arrives
        if offset == table.offset and table.offset + len(piece) <= table.size_bytes:
            table.append(piece)
        return _table_state(table)
    upload = await session.api.get(f"uploads/{upload_id}")
    return await _upload_state(session.api, await send_piece(session.api, upload, offset, piece))


@routes.delete("/uploads/{upload_id}")
async def cancel(session: Uploader, table: Table, request: Request, upload_id: ObjectId) -> Json:
    if table:
        _tables(request).discard(table)
    else:
        await session.api.post(f"uploads/{upload_id}/cancel")
    return {"id": upload_id}


@routes.get("/files/{file_id}/content")
async def file_content(request: Request, sessions: Sessions, file_id: ObjectId) -> Response:
    return await _download(sessions, request, f"files/{file_id}/content", None, f"files/{file_id}")


@routes.get("/jobs/{job_id}/metrics.csv")
async def metrics(request: Request, sessions: Sessions, job_id: ObjectId) -> Response:
    path = f"fine_tuning/jobs/{job_id}/metrics?format=csv"
    return await _download(sessions, request, path, f"{job_id}-metrics.csv")


@routes.get("/jobs/{job_id}/log.txt")
async def log(
    request: Request, sessions: Sessions, job_id: ObjectId, attempt: int | None = None, number: int | None = None
) -> Response:
    """`number` is that of the attempt among the trainings, as the pages count."""
    query, name = (f"?attempt={attempt}", f"-attempt-{number}") if attempt is not None else ("", "")
    return await _download(sessions, request, f"fine_tuning/jobs/{job_id}/logs{query}", f"{job_id}-log{name}.txt")


@routes.get("/jobs/{job_id}/adapter.tar")
async def adapter(request: Request, sessions: Sessions, job_id: ObjectId) -> Response:
    return await _download(sessions, request, f"fine_tuning/jobs/{job_id}/adapter/archive", f"{job_id}-adapter.tar")


async def create_upload(api: ApiClient, filename: str, size_bytes: int) -> Json:
    body = {"filename": filename, "purpose": "fine-tune", "bytes": size_bytes, "mime_type": MIME_TYPE}
    return await api.post("uploads", body)


async def send_piece(api: ApiClient, upload: Json, offset: int, piece: bytes) -> Json:
    """The upload after this piece. The last one waits for the check of all lines; an empty one repeats this check."""
    path, total = f"uploads/{upload['id']}", int(upload["bytes"])
    end = offset + len(piece)
    if not piece:
        return await api.post(f"{path}/complete", {}, timeout_seconds=completion_seconds(total))
    headers = {"Content-Range": f"bytes {offset}-{end - 1}/{total}", "Content-Type": MIME_TYPE}
    seconds = completion_seconds(total) if end == total else RESPONSE_SECONDS
    return await api.put(f"{path}/content", piece, headers, seconds)


async def _upload_state(api: ApiClient, upload: Json) -> Json:
    if upload["status"] == "completed":
        file = upload["file"]
        return {
            "id": upload["id"],
            "offset": upload["bytes"],
            "result": {"file_id": file["id"], "filename": file["filename"]},
        }
    if upload["status"] != "pending":
        raise ApiError(f"The upload is {upload['status']}. Drop the file again to start a new one.", 400)
    headers = await api.head(f"uploads/{upload['id']}/content")
    return {"id": upload["id"], "offset": int(headers["upload-offset"]), "result": None}


def _table_state(table: DroppedTable) -> Json:
    is_complete = table.offset == table.size_bytes
    result = {"table_id": table.id, "filename": table.filename} if is_complete else None
    return {"id": table.id, "offset": table.offset, "result": result}


async def _read_body(request: Request, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise DroppedTableError(f"A piece may have at most {limit_bytes:,} bytes.")
    return bytes(body)


async def _download(
    sessions: SessionStore, request: Request, path: str, filename: str | None, file_path: str = ""
) -> Response:
    """The content of an API path as an attachment, with byte ranges. `filename` None: that of the file."""
    session = sessions.of(request)
    if session is None:
        return RedirectResponse("/sign-in?reason=expired", 303)
    resources = AsyncExitStack()
    try:
        filename = filename or str((await session.api.get(file_path))["filename"])
        headers = {"accept-encoding": "identity"}  # the bytes are passed on as they are
        headers |= {"range": request.headers["range"]} if "range" in request.headers else {}
        upstream = await resources.enter_async_context(session.api.stream("GET", path, headers=headers))
    except ApiError as error:
        return Response(error.message, error.status or 503, media_type="text/plain; charset=utf-8")

    async def content() -> AsyncIterator[bytes]:
        async with resources:
            async for chunk in upstream.aiter_raw(CHUNK_BYTES):
                yield chunk

    kept = {name: upstream.headers[name] for name in KEPT_HEADERS if name in upstream.headers} | {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
        "Cache-Control": "private, no-store",
    }
    return StreamingResponse(content(), upstream.status_code, kept, "application/octet-stream")
