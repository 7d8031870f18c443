"""Multipart uploads: create, add parts, cancel. app.services.files.upload_completion completes them.

Every change locks the upload's row, which serializes changes, and decides by its state under the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.files import delete_parts
from app.db.ids import new_id
from app.db.operations.status import server_time
from app.db.tables import Upload, UploadPart
from app.domain.files import MAX_PART_BYTES, MAX_PARTS, UploadStatus, clean_filename, max_stored_bytes
from app.errors import BadRequest, TooLarge
from app.services import resources
from app.services.access import quotas
from app.services.files.files import StagedFile, discard_object, inserting
from app.settings import Settings
from app.storage import Storage

TAKES_NO_CONTENT, TAKES_NO_PARTS = "takes no more content", "takes no more parts"


def create(session: Session, project_id: str, given: Mapping[str, Any], settings: Settings) -> Upload:
    """Create an upload of the fields of a request. Raises BadRequest, QuotaExceeded."""
    columns = dict(given) | {"filename": clean_filename(given["filename"])}
    size_bytes: int = columns["bytes"]
    if size_bytes > settings.max_upload_bytes:
        text = f"bytes: {size_bytes:,} is more than {settings.max_upload_bytes:,}, the limit for one upload"
        raise BadRequest(text, "bytes", "file_too_large")
    for limit, maximum, pending, more in (
        ("max_pending_uploads", settings.max_pending_uploads, func.count(), 1),
        ("max_pending_upload_bytes", settings.max_pending_upload_bytes, func.sum(Upload.bytes), size_bytes),
    ):
        count = partial(_total_of_pending, pending)
        quotas.require_room(session, project_id, limit, maximum, count, "complete or cancel a pending upload", more)
    quotas.require_storage(session, project_id, size_bytes)
    if expiry := columns.pop("expires_after"):
        columns["file_expires_after_seconds"] = expiry["seconds"]
    now = server_time(session)
    times = {"created_at": now, "expires_at": now + timedelta(seconds=settings.upload_ttl_seconds)}
    return resources.store(session, Upload(id=new_id("upload", "_"), project_id=project_id, **columns, **times))


def get(session: Session, project_id: str, upload_id: str, lock: bool = False) -> Upload:
    """An upload with its current status, its size and its file. Raises NotFound."""
    upload = resources.get(session, Upload, upload_id, Upload.project_id == project_id, lock=lock)
    upload.current_status = UploadStatus(upload.status)
    if upload.current_status == UploadStatus.COMPLETED:
        upload.received_bytes, upload.file = upload.bytes, files.get(session, project_id, upload.file_id or "")
        return upload
    if upload.current_status == UploadStatus.PENDING and server_time(session) >= upload.expires_at:
        upload.current_status = UploadStatus.EXPIRED
    upload.received_bytes = _part_totals(session, upload)[1]
    return upload


def posted_parts(session: Session, project_id: str, upload_id: str) -> list[UploadPart]:
    """The parts posted so far, in the order they arrived, from which a client resumes."""
    upload = get(session, project_id, upload_id)
    query = select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.start.is_(None))
    return list(session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)))


def stream_pieces(session: Session, upload: Upload) -> list[UploadPart]:
    """The pieces of content sent as one stream, in order; a unique index allows one piece for each `start`."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.start.is_not(None))
    return list(session.scalars(query.order_by(UploadPart.start)))


def read(sessions: Sessions, project_id: str, upload_id: str) -> Upload:
    """As `get`, in a transaction of its own."""
    with transaction(sessions) as session:
        return get(session, project_id, upload_id)


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

    def insert(session: Session, part: UploadPart) -> None:
        before_insert(session)
        upload = get(session, project_id, upload_id, lock=True)
        require_pending(upload, TAKES_NO_PARTS)
        _require_part_quota(session, upload, staged.size_bytes)
        resources.store(session, part)
        after_insert(session, part)

    return store_part(sessions, storage, project_id, upload_id, staged, insert)


def store_part(
    sessions: Sessions,
    storage: Storage,
    project_id: str,
    upload_id: str,
    staged: StagedFile,
    insert: Callable[[Session, UploadPart], None],
) -> UploadPart:
    """Store staged content, then `insert` its row in a transaction; without a row the stored object is deleted."""
    staged.close()
    part = UploadPart(id=new_id("part", "_"), project_id=project_id, upload_id=upload_id)
    part.bytes, part.sha256 = staged.size_bytes, staged.sha256
    part.storage_key = f"uploads/{upload_id}/{part.id}"
    storage.put(part.storage_key, staged.path)
    with inserting(sessions, storage, part.storage_key) as session:
        insert(session, part)
    return part


def cancel(session: Session, project_id: str, upload_id: str) -> Upload:
    """Cancel an upload; no error if it is cancelled already. The next cleanup deletes the content of its parts."""
    upload = get(session, project_id, upload_id, lock=True)
    if upload.current_status != UploadStatus.CANCELLED:
        require_pending(upload, "cannot be cancelled")
        upload.status = upload.current_status = UploadStatus.CANCELLED
        session.flush()
    return upload


def require_pending(upload: Upload, refused_action: str) -> None:
    """Raises BadRequest; `refused_action` completes the sentence "so it ..." of the message."""
    if upload.current_status == UploadStatus.EXPIRED:
        text = f"Upload {upload.id} has expired, so it {refused_action}; create another one with POST /v1/uploads."
        raise BadRequest(text, code="upload_expired")
    if upload.current_status != UploadStatus.PENDING:
        file = f" as {upload.file_id}" if upload.file_id else ""
        text = f"Upload {upload.id} is {upload.status}{file}, so it {refused_action}; only a pending upload can."
        raise BadRequest(text, code="invalid_upload_state")


def part_too_large(max_bytes: int = MAX_PART_BYTES) -> TooLarge:
    return TooLarge(f"The part is larger than {max_bytes:,} bytes, the limit for one part; send smaller ones.", "data")


def _require_part_quota(session: Session, upload: Upload, more_bytes: int) -> None:
    """Raises BadRequest beyond the limits of parts; their bytes are limited to twice the upload's, to allow retries."""
    count, stored_bytes = _part_totals(session, upload)
    max_bytes = max_stored_bytes(upload.bytes)
    if count >= MAX_PARTS:
        raise BadRequest(f"Upload {upload.id} has {count:,} parts, the limit; send fewer and larger ones.", "data")
    if stored_bytes + more_bytes > max_bytes:
        text = (
            f"Upload {upload.id} was declared with {upload.bytes:,} bytes, and its parts have {stored_bytes:,}; "
            f"with these {more_bytes:,} they would exceed {max_bytes:,}, the limit that allows for retries."
        )
        raise BadRequest(text, "data")


def _part_totals(session: Session, upload: Upload) -> tuple[int, int]:
    """(number of parts, bytes of all parts together)."""
    counted = select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0))
    count, total_bytes = session.execute(counted.where(UploadPart.upload_id == upload.id)).one()
    return int(count), int(total_bytes)


def _total_of_pending(column: Any, session: Session, project_id: str) -> int:
    """`column`, a count or a sum, of the pending uploads of a project."""
    is_pending = (Upload.status == UploadStatus.PENDING, Upload.expires_at > func.clock_timestamp())
    return int(session.scalar(select(column).where(Upload.project_id == project_id, *is_pending)) or 0)


def progress(session: Session, project_id: str, upload_id: str) -> tuple[Upload, int]:
    """An upload and the bytes of its stored content. Raises BadRequest for one that is cancelled or expired."""
    upload = get(session, project_id, upload_id)
    if upload.status == UploadStatus.COMPLETED:
        return upload, upload.bytes
    require_pending(upload, TAKES_NO_CONTENT)
    return upload, _stored_bytes(session, upload)


def begin_writing(sessions: Sessions, storage: Storage, project_id: str, upload_id: str, start: int | None) -> Upload:
    """Become the latest writer of the upload, at byte `start`, the end of the stored content.

    None deletes the content and starts at 0.
    """
    dropped: list[UploadPart] = []
    with transaction(sessions) as session:
        upload = get(session, project_id, upload_id, lock=True)
        require_pending(upload, TAKES_NO_CONTENT)
        if start is None:
            dropped = stream_pieces(session, upload)
            delete_parts(session, dropped)
        if (start or 0) != (stored_bytes := _stored_bytes(session, upload)):
            text = (
                f"Content-Range: begins at byte {start:,}, but {stored_bytes:,} bytes of upload {upload.id} are "
                "stored; continue there, or send all of it without Content-Range."
            )
            raise BadRequest(text, "Content-Range", "upload_offset_mismatch")
        upload.writer += 1
    for piece in dropped:
        discard_object(storage, piece.storage_key)
    return upload


def add_piece(sessions: Sessions, storage: Storage, begun: Upload, staged: StagedFile, start: int) -> UploadPart:
    """Store a staged piece of content at byte `start`, of the writer that `begin_writing` returned.

    Raises BadRequest for an outdated writer. An upload that expired after its request began counts as pending.
    """

    def insert(session: Session, piece: UploadPart) -> None:
        upload = get(session, begun.project_id, begun.id, lock=True)
        if upload.status != UploadStatus.PENDING:
            require_pending(upload, TAKES_NO_CONTENT)
        if upload.writer != begun.writer:
            text = f"A later request sends the content of upload {upload.id} now; no more of this request is stored."
            raise BadRequest(text, code="upload_taken_over")
        resources.store(session, piece, start=start)

    return store_part(sessions, storage, begun.project_id, begun.id, staged, insert)


def _stored_bytes(session: Session, upload: Upload) -> int:
    query = select(func.max(UploadPart.start + UploadPart.bytes)).where(UploadPart.upload_id == upload.id)
    return int(session.scalar(query) or 0)
