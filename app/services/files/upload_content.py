"""The content of an upload as one stream, for plain HTTP clients: stored piece by piece, gone on with after a break.

Each request that sends content takes the next number of the upload's `writer`. A connection that broke may live on
unnoticed on our side; its number is an old one as soon as the client goes on, and it adds nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.files import uploads
from app.db.ids import new_id
from app.db.tables import Upload, UploadPart
from app.domain.uploads import UploadStatus
from app.errors import BadRequest
from app.services.files.ingest import StagedFile
from app.services.files.uploads import UploadView, part_key, require_pending, require_upload, view_of
from app.storage import Storage

REFUSED_ACTION = "takes no more content"


@dataclass(frozen=True)
class UploadCursor:
    """A request that may add content from `start` on, until there are `total_bytes`."""

    project_id: str
    upload_id: str
    number: int
    start: int
    total_bytes: int


def progress(session: Session, project_id: str, upload_id: str) -> tuple[UploadView, int]:
    """An upload and how many bytes of its content are here for good. Raises BadRequest for one that is lost."""
    upload = require_upload(uploads.get(session, project_id, upload_id), upload_id)
    seen = view_of(session, upload)
    if seen.status == UploadStatus.COMPLETED:
        return seen, upload.bytes
    require_pending(seen, REFUSED_ACTION)
    return seen, uploads.stream_bytes(session, upload)


def begin_writing(
    sessions: Sessions, storage: Storage, project_id: str, upload_id: str, start: int | None
) -> UploadCursor:
    """Take over the writing at `start`, which must be where the content ends; None throws away what there is."""
    dropped: list[UploadPart] = []
    with transaction(sessions) as session:
        upload = require_upload(uploads.lock(session, project_id, upload_id), upload_id)
        require_pending(view_of(session, upload), REFUSED_ACTION)
        if start is None:
            dropped = uploads.stream_pieces(session, upload)
            uploads.delete_parts(session, dropped)
        _require_offset(upload, uploads.stream_bytes(session, upload), start or 0)
        writer = UploadCursor(
            project_id, upload_id, uploads.next_writer_number(session, upload), start or 0, upload.bytes
        )
    for piece in dropped:
        storage.delete(piece.storage_key)
    return writer


def add_piece(sessions: Sessions, storage: Storage, writer: UploadCursor, staged: StagedFile, start: int) -> UploadPart:
    """Store what was staged as the content from `start` on. Raises BadRequest for an old writer."""
    staged.close()
    piece_id = new_id("part", "_")
    key = part_key(writer.upload_id, piece_id)
    storage.put(key, staged.path)
    inserted = False
    try:
        with transaction(sessions) as session:
            upload = require_upload(uploads.lock(session, writer.project_id, writer.upload_id), writer.upload_id)
            _require_latest_writer(session, upload, writer)
            piece = uploads.insert_part(session, upload, piece_id, staged.size_bytes, staged.sha256, key, start)
            inserted = True
    except BaseException:
        if not inserted:  # a commit whose answer was lost may have happened
            storage.delete(key)
        raise
    return piece


def _require_offset(upload: Upload, there_bytes: int, start: int) -> None:
    if start != there_bytes:
        text = (
            f"Content-Range: begins at byte {start:,}, but {there_bytes:,} bytes of upload {upload.id} are here; go on "
            f"from there, or send all of it without Content-Range."
        )
        raise BadRequest(text, "Content-Range", "upload_offset_mismatch")


def _require_latest_writer(session: Session, upload: Upload, writer: UploadCursor) -> None:
    """Begun in time is in time, as for completing."""
    if upload.status != UploadStatus.PENDING:
        require_pending(view_of(session, upload), REFUSED_ACTION)
    if upload.writer != writer.number:
        text = f"Another request sends the content of upload {upload.id} by now; of this one nothing more is kept."
        raise BadRequest(text, code="upload_taken_over")
