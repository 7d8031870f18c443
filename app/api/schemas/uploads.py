"""Request and response bodies of uploads."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, unix_seconds
from app.api.schemas.files import FileBody
from app.api.schemas.jobs.requests import Id, Strict
from app.db.tables import UploadPart
from app.domain.files.uploads import EXPIRES_SECONDS, MAX_FILENAME, MAX_PARTS, clean_filename
from app.services.files.uploads import NewUpload, UploadView

MAX_INT64 = (1 << 63) - 1
Purpose = Literal["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]


class ExpiresAfter(Strict):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=EXPIRES_SECONDS[0], le=EXPIRES_SECONDS[1])]


class CreateUpload(Strict):
    filename: Annotated[str, Field(min_length=1, max_length=4 * MAX_FILENAME)]
    purpose: Annotated[Purpose, Field(description="Jobs take files with purpose fine-tune.")]
    bytes: Annotated[int, Field(ge=0, le=MAX_INT64, description="The exact size of the whole content in bytes.")]
    mime_type: Annotated[
        str, Field(min_length=1, max_length=255, description="Stored but not used: the content determines the type.")
    ]
    expires_after: Annotated[ExpiresAfter | None, Field(description="The expiry of the completed file.")] = None


class CompleteUpload(Strict):
    part_ids: Annotated[
        list[Id] | None,
        Field(
            max_length=MAX_PARTS,
            description="All parts of the file, in order. Omit it if the content was sent by PUT.",
        ),
    ] = None
    md5: Annotated[
        str | None, Field(pattern="^[0-9a-fA-F]{32}$", description="MD5 of the whole file, in hexadecimal digits.")
    ] = None


class UploadBody(Body):
    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileBody | None
    mime_type: str
    received_bytes: int


class PartBody(Body):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str
    bytes: int
    sha256: str


class PartList(ListBody):
    data: list[PartBody]


def new_upload(body: CreateUpload) -> NewUpload:
    seconds = body.expires_after.seconds if body.expires_after else None
    return NewUpload(
        filename=clean_filename(body.filename),
        purpose=body.purpose,
        mime_type=body.mime_type,
        size_bytes=body.bytes,
        file_expires_after=None if seconds is None else timedelta(seconds=seconds),
    )


def render_upload(view: UploadView) -> dict[str, Any]:
    upload = view.upload
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": unix_seconds(upload.created_at),
        "expires_at": unix_seconds(upload.expires_at),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": str(view.status),
        "file": view.file,
        "mime_type": upload.mime_type,
        "received_bytes": view.received_bytes,
    }


def render_part(part: UploadPart) -> dict[str, Any]:
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": unix_seconds(part.created_at),
        "upload_id": part.upload_id,
        "bytes": part.bytes,
        "sha256": part.sha256,
    }
