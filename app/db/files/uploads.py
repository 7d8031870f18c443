"""Uploads and their parts. Every change locks the row of the upload, which serializes changes. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import File, Upload, UploadPart
from app.domain.files.uploads import UploadStatus

COMPLETION_GRACE_SECONDS = 1800  # a completion that runs when its upload expires may take so much longer


def insert(session: Session, project_id: str, ttl_seconds: float, **columns: Any) -> Upload:
    upload = Upload(id=new_id("upload", "_"), project_id=project_id, **columns)
    upload.created_at = session.scalars(select(func.clock_timestamp())).one()
    upload.expires_at = upload.created_at + timedelta(seconds=ttl_seconds)
    session.add(upload)
    session.flush()
    session.refresh(upload)
    return upload


def get(session: Session, project_id: str, upload_id: str) -> Upload | None:
    return session.scalar(select(Upload).where(Upload.project_id == project_id, Upload.id == upload_id))


def lock(session: Session, project_id: str, upload_id: str) -> Upload | None:
    """Read the upload again and lock it until this transaction ends."""
    query = select(Upload).where(Upload.project_id == project_id, Upload.id == upload_id)
    return session.scalar(query.with_for_update().execution_options(populate_existing=True))


def pending_count(session: Session, project_id: str) -> int:
    return session.scalar(_pending(project_id, func.count())) or 0


def pending_bytes(session: Session, project_id: str) -> int:
    """The declared bytes of all pending uploads of a project."""
    return int(session.scalar(_pending(project_id, func.sum(Upload.bytes))) or 0)


def is_expired(session: Session, upload: Upload) -> bool:
    """Whether the upload has expired, by the database's clock."""
    return bool(session.scalar(select(func.clock_timestamp() >= upload.expires_at)))


def insert_part(
    session: Session, upload: Upload, part_id: str, size_bytes: int, sha256: str, key: str, start: int | None
) -> UploadPart:
    part = UploadPart(
        id=part_id,
        project_id=upload.project_id,
        upload_id=upload.id,
        start=start,
        bytes=size_bytes,
        sha256=sha256,
        storage_key=key,
    )
    session.add(part)
    session.flush()
    session.refresh(part)
    return part


def part_totals(session: Session, upload: Upload) -> tuple[int, int]:
    """(number of parts, bytes of all parts together)."""
    counted = select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0))
    count, total_bytes = session.execute(counted.where(UploadPart.upload_id == upload.id)).one()
    return int(count), int(total_bytes)


def posted_parts(session: Session, upload: Upload, part_ids: Sequence[str]) -> dict[str, UploadPart]:
    """The parts among `part_ids` that were posted to this upload, by id."""
    query = select(UploadPart).where(
        UploadPart.upload_id == upload.id, UploadPart.start.is_(None), UploadPart.id.in_(part_ids)
    )
    return {part.id: part for part in session.scalars(query)}


def all_posted_parts(session: Session, upload: Upload) -> list[UploadPart]:
    """All posted parts of an upload, in the order they arrived."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.start.is_(None))
    return list(session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)))


def stream_pieces(session: Session, upload: Upload) -> list[UploadPart]:
    """The pieces of content sent as one stream, in order; a unique index allows one piece for each `start`."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.start.is_not(None))
    return list(session.scalars(query.order_by(UploadPart.start)))


def stream_bytes(session: Session, upload: Upload) -> int:
    """The bytes of the streamed content that are stored."""
    query = select(func.max(UploadPart.start + UploadPart.bytes)).where(UploadPart.upload_id == upload.id)
    return int(session.scalar(query) or 0)


def next_writer_number(session: Session, upload: Upload) -> int:
    """Number the request that sends content from now on; earlier requests may not add pieces any more."""
    upload.writer += 1
    session.flush()
    return upload.writer


def complete(session: Session, upload: Upload, file: File, part_ids: list[str]) -> None:
    upload.status, upload.file_id, upload.part_ids = UploadStatus.COMPLETED, file.id, part_ids
    session.flush()


def cancel(session: Session, upload: Upload) -> None:
    upload.status = UploadStatus.CANCELLED
    session.flush()


def mark_expired(session: Session) -> int:
    """Mark pending uploads as expired, after a grace for running completions; the number of them."""
    is_over = Upload.expires_at + timedelta(seconds=COMPLETION_GRACE_SECONDS) < func.clock_timestamp()
    query = select(Upload).where(Upload.status == UploadStatus.PENDING, is_over).with_for_update(skip_locked=True)
    expired = list(session.scalars(query))
    for upload in expired:
        upload.status = UploadStatus.EXPIRED
    session.flush()
    return len(expired)


def leftover_parts(session: Session, limit: int = 100) -> list[UploadPart]:
    """Parts of uploads that have ended: their content is in a file, or not needed."""
    ended: ColumnElement[bool] = Upload.status != UploadStatus.PENDING
    query = select(UploadPart).join(Upload, Upload.id == UploadPart.upload_id).where(ended)
    return list(session.scalars(query.limit(limit)))


def delete_parts(session: Session, parts: Sequence[UploadPart]) -> None:
    session.execute(delete(UploadPart).where(UploadPart.id.in_([part.id for part in parts])))


def keys_in_use(session: Session, keys: Sequence[str]) -> set[str]:
    """The storage keys among `keys` that belong to a part."""
    return set(session.scalars(select(UploadPart.storage_key).where(UploadPart.storage_key.in_(keys))))


def _pending(project_id: str, column: Any) -> Select[tuple[int]]:
    return select(column).where(
        Upload.project_id == project_id,
        Upload.status == UploadStatus.PENDING,
        Upload.expires_at > func.clock_timestamp(),
    )
