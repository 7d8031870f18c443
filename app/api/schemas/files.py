"""Bodies of files."""

from __future__ import annotations

from typing import Literal

from app.api.schemas.common import Body, ListBody, UnixTime
from app.api.schemas.jobs.requests import Strict
from app.domain.files import FileOrigin


class FileBody(Body):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: UnixTime
    filename: str
    purpose: str
    """The purpose of the upload, or `fine-tune-results` for a file that a job created."""
    status: Literal["uploaded", "processed", "error"]
    """`processed`: the file was checked and can be used."""
    status_details: str | None = None
    """Null; OpenAI's older place for findings. The error of a refused upload has them."""
    expires_at: UnixTime | None
    """When the file is deleted automatically, in seconds since 1970; null: never."""
    sha256: str
    line_count: int | None
    """The number of lines of a JSONL file that are not blank."""
    origin: FileOrigin | None
    """Where an imported file comes from; null for other files."""


class UpdateFile(Strict):
    origin: FileOrigin | None
    """Where the file comes from; null removes it."""


class FileList(ListBody):
    data: list[FileBody]
