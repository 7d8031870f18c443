"""Uploads by parts: begun, added to, cancelled. Putting them together is app.services.files.upload_completion.

The row decides: every change takes its lock, and what the row says then is what is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.files import files, uploads
from app.db.ids import new_id
from app.db.tables import File, Upload, UploadPart
from app.domain.error_text.json_text import unquoted
from app.domain.uploads import MAX_PART_BYTES, MAX_PARTS, UploadStatus, max_stored_bytes
from app.errors import BadRequest, NotFound, TooLarge
from app.services.access import quotas
from app.services.files.ingest import StagedFile
from app.storage import Storage


@dataclass(frozen=True)
class NewUpload:
    filename: str
    purpose: str
    mime_type: str
    size_bytes: int
    file_expires_after: timedelta | None = None


@dataclass(frozen=True)
class UploadView:
    """An upload as it is now: `status` is "expired" from the moment on at which its time is over."""

    upload: Upload
    status: UploadStatus
    received_bytes: int
    file: File | None = None


def create(session: Session, project_id: str, new: NewUpload, ttl_seconds: float, max_upload_bytes: int) -> UploadView:
    if new.size_bytes > max_upload_bytes:
        text = f"bytes: {new.size_bytes:,} is more than {max_upload_bytes:,}, the limit for one upload"
        raise BadRequest(text, "bytes", "file_too_large")
    quotas.require_storage(session, project_id, new.size_bytes)
    upload = uploads.insert(
        session, project_id, ttl_seconds, filename=new.filename, purpose=new.purpose, mime_type=new.mime_type,
        bytes=new.size_bytes,
        file_expires_after_seconds=int(new.file_expires_after.total_seconds()) if new.file_expires_after else None,
    )  # fmt: skip
    return view_of(session, upload)


def get(session: Session, project_id: str, upload_id: str) -> UploadView:
    return view_of(session, require_upload(uploads.get(session, project_id, upload_id), upload_id))


def posted_parts(session: Session, project_id: str, upload_id: str) -> list[UploadPart]:
    """What was posted so far, in the order it arrived: from here a client goes on after a break."""
    return uploads.all_posted_parts(session, require_upload(uploads.get(session, project_id, upload_id), upload_id))


def check_pending(sessions: Sessions, project_id: str, upload_id: str) -> UploadView:
    """Before a body is read: whether it could be of any use. Raises NotFound, BadRequest."""
    with transaction(sessions) as session:
        seen = get(session, project_id, upload_id)
        require_pending(seen, "takes no more parts")
        return seen


def add_part(
    sessions: Sessions,
    storage: Storage,
    project_id: str,
    upload_id: str,
    staged: StagedFile,
    begin: Callable[[Session], None] = lambda _session: None,
    end: Callable[[Session, UploadPart], None] = lambda _session, _part: None,
) -> UploadPart:
    """Store a part, and then its row; a part that is sent again is another part, which no list needs to name.

    `begin` and `end` belong to the transaction of that row.
    """
    staged.close()
    part_id = new_id("part", "_")
    key = part_key(upload_id, part_id)
    storage.put(key, staged.path)
    inserted = False
    try:
        with transaction(sessions) as session:
            begin(session)
            upload = require_upload(uploads.lock(session, project_id, upload_id), upload_id)
            require_pending(view_of(session, upload), "takes no more parts")
            require_part_quota(session, upload, staged.size_bytes)
            part = uploads.insert_part(session, upload, part_id, staged.size_bytes, staged.sha256, key, start=None)
            end(session, part)
            inserted = True
    except BaseException:
        if not inserted:  # a commit whose answer was lost may have happened
            storage.delete(key)
        raise
    return part


def cancel(session: Session, project_id: str, upload_id: str) -> UploadView:
    """Cancelling twice is cancelling once; the parts' bytes go with the next sweep."""
    upload = require_upload(uploads.lock(session, project_id, upload_id), upload_id)
    seen = view_of(session, upload)
    if seen.status == UploadStatus.CANCELLED:
        return seen
    require_pending(seen, "cannot be cancelled")
    uploads.cancel(session, upload)
    return view_of(session, upload)


def view_of(session: Session, upload: Upload) -> UploadView:
    status = UploadStatus(upload.status)
    if status == UploadStatus.COMPLETED:
        file = files.get(session, upload.project_id, upload.file_id or "")
        return UploadView(upload, status, upload.bytes, file)
    if status == UploadStatus.PENDING and uploads.is_expired(session, upload):
        status = UploadStatus.EXPIRED
    return UploadView(upload, status, uploads.part_totals(session, upload)[1])


def require_upload(upload: Upload | None, upload_id: str) -> Upload:
    if upload is None:
        raise NotFound(f"No such Upload object: {unquoted(upload_id)}", "id")
    return upload


def require_pending(seen: UploadView, then: str) -> None:
    upload = seen.upload
    if seen.status == UploadStatus.EXPIRED:
        text = f"Upload {upload.id} has expired, so it {then}; begin another one with POST /v1/uploads."
        raise BadRequest(text, code="upload_expired")
    if seen.status != UploadStatus.PENDING:
        whose = f" as {upload.file_id}" if upload.file_id else ""
        text = f"Upload {upload.id} is {seen.status}{whose}, so it {then}; only a pending one could."
        raise BadRequest(text, code="invalid_upload_state")


def require_part_quota(session: Session, upload: Upload, more_bytes: int) -> None:
    """Raises BadRequest: parts of one upload may take twice its bytes, as retries leave some that are not needed."""
    count, stored_bytes = uploads.part_totals(session, upload)
    most = max_stored_bytes(upload.bytes)
    if count >= MAX_PARTS:
        raise BadRequest(
            f"Upload {upload.id} has {count:,} parts, and more there may not be; send larger ones.", "data"
        )
    if stored_bytes + more_bytes > most:
        text = (
            f"Upload {upload.id} was declared with {upload.bytes:,} bytes, and its parts have {stored_bytes:,}; "
            f"with these {more_bytes:,} they would have more than {most:,}, which is all that retries may take."
        )
        raise BadRequest(text, "data")


def part_key(upload_id: str, part_id: str) -> str:
    return f"uploads/{upload_id}/{part_id}"


def part_too_large(max_bytes: int = MAX_PART_BYTES) -> TooLarge:
    return TooLarge(f"The part is larger than {max_bytes:,} bytes, the limit for one part; send smaller ones.", "data")
