"""Multipart uploads: create, add parts, cancel. app.services.files.upload_completion completes them.

Every change locks the upload's row and decides by its state under the lock.
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
from app.domain.files.uploads import MAX_PART_BYTES, MAX_PARTS, UploadStatus, max_stored_bytes
from app.errors import BadRequest, NotFound, TooLarge
from app.services.access import quotas
from app.services.files.ingest import StagedFile, discard_object
from app.settings import Settings
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
    """An upload with its current status, which is "expired" as soon as its time is over."""

    upload: Upload
    status: UploadStatus
    received_bytes: int
    file: File | None = None


def create(session: Session, project_id: str, new: NewUpload, settings: Settings) -> UploadView:
    """Raises BadRequest, QuotaExceeded."""
    if new.size_bytes > settings.max_upload_bytes:
        text = f"bytes: {new.size_bytes:,} is more than {settings.max_upload_bytes:,}, the limit for one upload"
        raise BadRequest(text, "bytes", "file_too_large")
    for limit, maximum, count, more in (
        ("max_pending_uploads", settings.max_pending_uploads, uploads.pending_count, 1),
        ("max_pending_upload_bytes", settings.max_pending_upload_bytes, uploads.pending_bytes, new.size_bytes),
    ):
        quotas.require_room(session, project_id, limit, maximum, count, "complete or cancel a pending upload", more)
    quotas.require_storage(session, project_id, new.size_bytes)
    upload = uploads.insert(
        session,
        project_id,
        settings.upload_ttl_seconds,
        filename=new.filename,
        purpose=new.purpose,
        mime_type=new.mime_type,
        bytes=new.size_bytes,
        file_expires_after_seconds=int(new.file_expires_after.total_seconds()) if new.file_expires_after else None,
    )
    return view_of(session, upload)


def get(session: Session, project_id: str, upload_id: str) -> UploadView:
    return view_of(session, require_upload(uploads.get(session, project_id, upload_id), upload_id))


def posted_parts(session: Session, project_id: str, upload_id: str) -> list[UploadPart]:
    """The parts posted so far, in the order they arrived, from which a client resumes."""
    return uploads.all_posted_parts(session, require_upload(uploads.get(session, project_id, upload_id), upload_id))


def check_pending(sessions: Sessions, project_id: str, upload_id: str) -> UploadView:
    """The upload, if it accepts parts; called before a body is read. Raises NotFound, BadRequest."""
    with transaction(sessions) as session:
        view = get(session, project_id, upload_id)
        require_pending(view, "takes no more parts")
        return view


def add_part(
    sessions: Sessions,
    storage: Storage,
    project_id: str,
    upload_id: str,
    staged: StagedFile,
    before_insert: Callable[[Session], None] = lambda _session: None,
    after_insert: Callable[[Session, UploadPart], None] = lambda _session, _part: None,
) -> UploadPart:
    """Store a part, then insert its row. A part that is sent twice becomes two parts, of which one is not used.

    `before_insert` and `after_insert` run in the transaction of the row. Raises NotFound, BadRequest.
    """
    staged.close()
    part_id = new_id("part", "_")
    key = part_key(upload_id, part_id)
    storage.put(key, staged.path)
    inserted = False
    try:
        with transaction(sessions) as session:
            before_insert(session)
            upload = require_upload(uploads.lock(session, project_id, upload_id), upload_id)
            require_pending(view_of(session, upload), "takes no more parts")
            require_part_quota(session, upload, staged.size_bytes)
            part = uploads.insert_part(session, upload, part_id, staged.size_bytes, staged.sha256, key, start=None)
            after_insert(session, part)
            inserted = True
    except BaseException:
        if not inserted:  # else the commit may have succeeded without a response
            discard_object(storage, key)
        raise
    return part


def cancel(session: Session, project_id: str, upload_id: str) -> UploadView:
    """Cancel an upload; no error if it is cancelled already. The next cleanup deletes the content of its parts."""
    upload = require_upload(uploads.lock(session, project_id, upload_id), upload_id)
    view = view_of(session, upload)
    if view.status == UploadStatus.CANCELLED:
        return view
    require_pending(view, "cannot be cancelled")
    uploads.cancel(session, upload)
    return view_of(session, upload)


def view_of(session: Session, upload: Upload) -> UploadView:
    """The upload with its current status, its size and its file."""
    status = UploadStatus(upload.status)
    if status == UploadStatus.COMPLETED:
        file = files.get(session, upload.project_id, upload.file_id or "")
        return UploadView(upload, status, upload.bytes, file)
    if status == UploadStatus.PENDING and uploads.is_expired(session, upload):
        status = UploadStatus.EXPIRED
    return UploadView(upload, status, uploads.part_totals(session, upload)[1])


def require_upload(upload: Upload | None, upload_id: str) -> Upload:
    """Raises NotFound for None."""
    if upload is None:
        raise NotFound(f"No such Upload object: {unquoted(upload_id)}", "id")
    return upload


def require_pending(view: UploadView, refused_action: str) -> None:
    """Raises BadRequest; `refused_action` completes the sentence "so it ..." of the message."""
    upload = view.upload
    if view.status == UploadStatus.EXPIRED:
        text = f"Upload {upload.id} has expired, so it {refused_action}; create another one with POST /v1/uploads."
        raise BadRequest(text, code="upload_expired")
    if view.status != UploadStatus.PENDING:
        file = f" as {upload.file_id}" if upload.file_id else ""
        text = f"Upload {upload.id} is {view.status}{file}, so it {refused_action}; only a pending upload can."
        raise BadRequest(text, code="invalid_upload_state")


def require_part_quota(session: Session, upload: Upload, more_bytes: int) -> None:
    """Raises BadRequest beyond the limits of parts; their bytes are limited to twice the upload's, to allow retries."""
    count, stored_bytes = uploads.part_totals(session, upload)
    max_bytes = max_stored_bytes(upload.bytes)
    if count >= MAX_PARTS:
        raise BadRequest(f"Upload {upload.id} has {count:,} parts, the limit; send fewer and larger ones.", "data")
    if stored_bytes + more_bytes > max_bytes:
        text = (
            f"Upload {upload.id} was declared with {upload.bytes:,} bytes, and its parts have {stored_bytes:,}; "
            f"with these {more_bytes:,} they would exceed {max_bytes:,}, the limit that allows for retries."
        )
        raise BadRequest(text, "data")


def part_key(upload_id: str, part_id: str) -> str:
    return f"uploads/{upload_id}/{part_id}"


def part_too_large(max_bytes: int = MAX_PART_BYTES) -> TooLarge:
    return TooLarge(f"The part is larger than {max_bytes:,} bytes, the limit for one part; send smaller ones.", "data")
