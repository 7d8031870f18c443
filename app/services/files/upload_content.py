"""Resumable upload of content as one stream, for plain HTTP clients: it is stored piece by piece.

Each request that sends content takes the next number of the upload's `writer`. The server may not notice a broken
connection at once; when the client resumes, the number of the old request is outdated and it cannot add pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.files.uploads import delete_parts
from app.db.tables import Upload, UploadPart
from app.domain.files import UploadStatus
from app.errors import BadRequest
from app.services.files import uploads
from app.services.files.ingest import StagedFile, discard_object
from app.storage import Storage

REFUSED_ACTION = "takes no more content"


@dataclass(frozen=True)
class UploadCursor:
    """A request that may add content from byte `start` on, up to `total_bytes`; `number` is its writer number."""

    project_id: str
    upload_id: str
    number: int
    start: int
    total_bytes: int


def progress(session: Session, project_id: str, upload_id: str) -> tuple[Upload, int]:
    """An upload and the bytes of its stored content. Raises BadRequest for one that is cancelled or expired."""
    upload = uploads.get(session, project_id, upload_id)
    if upload.status == UploadStatus.COMPLETED:
        return upload, upload.bytes
    uploads.require_pending(upload, REFUSED_ACTION)
    return upload, _stored_bytes(session, upload)


def begin_writing(
    sessions: Sessions, storage: Storage, project_id: str, upload_id: str, start: int | None
) -> UploadCursor:
    """Become the writer at byte `start`, the end of the stored content; None deletes the content and starts at 0."""
    dropped: list[UploadPart] = []
    with transaction(sessions) as session:
        upload = uploads.get(session, project_id, upload_id, lock=True)
        uploads.require_pending(upload, REFUSED_ACTION)
        if start is None:
            dropped = uploads.stream_pieces(session, upload)
            delete_parts(session, dropped)
        _require_offset(upload, _stored_bytes(session, upload), start or 0)
        upload.writer += 1
        writer = UploadCursor(project_id, upload_id, upload.writer, start or 0, upload.bytes)
    for piece in dropped:
        discard_object(storage, piece.storage_key)
    return writer


def add_piece(sessions: Sessions, storage: Storage, writer: UploadCursor, staged: StagedFile, start: int) -> UploadPart:
    """Store a staged piece of content at byte `start`. Raises BadRequest for an outdated writer."""

    def insert(session: Session, piece: UploadPart) -> None:
        _require_latest_writer(uploads.get(session, writer.project_id, writer.upload_id, lock=True), writer)
        piece.start = start
        uploads.insert_row(session, piece)

    return uploads.store_part(sessions, storage, writer.project_id, writer.upload_id, staged, insert)


def _stored_bytes(session: Session, upload: Upload) -> int:
    query = select(func.max(UploadPart.start + UploadPart.bytes)).where(UploadPart.upload_id == upload.id)
    return int(session.scalar(query) or 0)


def _require_offset(upload: Upload, stored_bytes: int, start: int) -> None:
    if start != stored_bytes:
        text = (
            f"Content-Range: begins at byte {start:,}, but {stored_bytes:,} bytes of upload {upload.id} are stored; "
            f"continue there, or send all of it without Content-Range."
        )
        raise BadRequest(text, "Content-Range", "upload_offset_mismatch")


def _require_latest_writer(upload: Upload, writer: UploadCursor) -> None:
    """Raises BadRequest for an outdated writer. An upload that expired after its request began counts as pending."""
    if upload.status != UploadStatus.PENDING:
        uploads.require_pending(upload, REFUSED_ACTION)
    if upload.writer != writer.number:
        text = (
            f"A later request sends the content of upload {upload.id} now; no more content of this request is stored."
        )
        raise BadRequest(text, code="upload_taken_over")
