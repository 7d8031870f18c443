"""Uploads from the browser in pieces: a JSONL file goes on to the API, a CSV file waits here for its conversion."""

from __future__ import annotations

import errno
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from app.domain.files.uploads import completion_seconds
from app.web.api_client import RESPONSE_SECONDS, ApiClient, ApiError, Json
from app.web.csv_tables import EXPIRED, CsvTable, TableError, TableStore
from app.web.downloads import ObjectId
from app.web.sessions import SessionStore, WebSession
from app.web.sign_in import is_same_origin

MAX_PIECE_BYTES = 16 << 20
CSV_NAMES = (".csv", ".tsv")
SHEET_NAMES = (".xlsx", ".xls", ".ods", ".numbers")
REFUSED_CODE = "invalid_training_file"  # of a line that is no JSON object
MIME_TYPE = "application/jsonl"
DISK_FULL = "The dashboard's disk is full: {reason}. Ask the operator for space, then try again; the upload continues."

NO_UPLOAD = "An upload has the name of a file and its size in bytes, at least 1: an empty file cannot be uploaded."


class BrowserUpload(BaseModel):
    """The body of a create."""

    model_config = ConfigDict(strict=True)

    filename: Annotated[str, Field(min_length=1)]
    bytes: Annotated[int, Field(ge=1)]


def router(sessions: SessionStore, tables: TableStore) -> APIRouter:
    routes = APIRouter(prefix="/uploads")

    @routes.post("")
    async def create(request: Request) -> Response:
        return await _answer(sessions, request, lambda session: _create(session, tables, request))

    @routes.get("/{upload_id}")
    async def read(request: Request, upload_id: ObjectId) -> Response:
        return await _answer(sessions, request, lambda session: _read(session, tables, upload_id))

    @routes.put("/{upload_id}/content")
    async def append(request: Request, upload_id: ObjectId, offset: int) -> Response:
        return await _answer(sessions, request, lambda session: _append(session, tables, request, upload_id, offset))

    @routes.delete("/{upload_id}")
    async def cancel(request: Request, upload_id: ObjectId) -> Response:
        return await _answer(sessions, request, lambda session: _cancel(session, tables, upload_id))

    return routes


async def _answer(sessions: SessionStore, request: Request, work: Any) -> Response:
    """The result of `work` as JSON, and each failure as {message}."""
    session = sessions.of(request)
    if session is None:
        return JSONResponse({"message": "Sign in again: the session has ended."}, 401)
    if not is_same_origin(request):
        return JSONResponse({"message": "The request came from another site."}, 403)
    try:
        return JSONResponse(await work(session))
    except ApiError as error:
        is_refused = error.code == REFUSED_CODE
        return JSONResponse({"message": error.message, "is_refused": is_refused}, error.status or 503)
    except TableError as error:
        return JSONResponse({"message": str(error)}, 400)
    except ValidationError:
        return JSONResponse({"message": NO_UPLOAD}, 400)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return JSONResponse({"message": DISK_FULL.format(reason=error.strerror)}, 507)


async def _create(session: WebSession, tables: TableStore, request: Request) -> Json:
    new = BrowserUpload.model_validate_json(await _read_body(request, 1 << 16))
    filename, size_bytes = new.filename, new.bytes
    if filename.lower().endswith(CSV_NAMES):
        return _table_state(tables.create(session.token, filename, size_bytes))
    if filename.lower().endswith(SHEET_NAMES):
        raise TableError("This is a spreadsheet. Save the sheet as CSV (UTF-8) and drop that file.")
    upload = await session.api.post(
        "uploads", {"filename": filename, "purpose": "fine-tune", "bytes": size_bytes, "mime_type": MIME_TYPE}
    )
    return await _upload_state(session.api, upload)


async def _read(session: WebSession, tables: TableStore, upload_id: str) -> Json:
    if upload_id.startswith("table-"):
        return _table_state(_own_table(session, tables, upload_id))
    return await _upload_state(session.api, await session.api.get(f"uploads/{upload_id}"))


async def _append(session: WebSession, tables: TableStore, request: Request, upload_id: str, offset: int) -> Json:
    """Store a piece that begins at `offset`. One that the server has already is left out."""
    piece = await _read_body(request, MAX_PIECE_BYTES)
    if upload_id.startswith("table-"):
        table = _own_table(session, tables, upload_id)
        if offset == table.offset and table.offset + len(piece) <= table.size_bytes:
            table.append(piece)
        return _table_state(table)
    upload = await session.api.get(f"uploads/{upload_id}")
    return await _upload_state(session.api, await send_piece(session.api, upload, offset, piece))


async def send_piece(api: ApiClient, upload: Json, offset: int, piece: bytes) -> Json:
    """The upload after this piece. The last one waits for the check of all lines; an empty one repeats this check."""
    path, total = f"uploads/{upload['id']}", int(upload["bytes"])
    end = offset + len(piece)
    if not piece:
        return await api.post(f"{path}/complete", {}, timeout_seconds=completion_seconds(total))
    headers = {"Content-Range": f"bytes {offset}-{end - 1}/{total}", "Content-Type": MIME_TYPE}
    seconds = completion_seconds(total) if end == total else RESPONSE_SECONDS
    return await api.put(f"{path}/content", piece, headers, seconds)


async def _cancel(session: WebSession, tables: TableStore, upload_id: str) -> Json:
    if upload_id.startswith("table-"):
        tables.discard(_own_table(session, tables, upload_id))
    else:
        await session.api.post(f"uploads/{upload_id}/cancel")
    return {"id": upload_id}


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


def _table_state(table: CsvTable) -> Json:
    is_complete = table.offset == table.size_bytes
    result = {"table_id": table.id, "filename": table.filename} if is_complete else None
    return {"id": table.id, "offset": table.offset, "result": result}


def _own_table(session: WebSession, tables: TableStore, table_id: str) -> CsvTable:
    table = tables.get(session.token, table_id)
    if table is None:
        raise TableError(EXPIRED)
    return table


async def _read_body(request: Request, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise TableError(f"A piece may have at most {limit_bytes:,} bytes.")
    return bytes(body)
