"""Bodies of files."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, ListBody, UnixTime, unix_seconds, unix_seconds_or_none
from app.api.schemas.jobs.requests import Strict
from app.db.tables import File
from app.domain.files.files import FileOrigin


class FileBody(Body):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: UnixTime
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None
    expires_at: UnixTime | None
    sha256: str
    line_count: int | None
    origin: FileOrigin | None


class UpdateFile(Strict):
    origin: FileOrigin | None


class FileList(ListBody):
    data: list[FileBody]


def render_file(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": unix_seconds(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": None,
        "expires_at": unix_seconds_or_none(file.expires_at),
        "sha256": file.sha256,
        "line_count": file.line_count,
        "origin": file.origin,
    }
