"""What the cleanup does to uploads; app.services.files.uploads has what clients do. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from app.db.tables import Upload, UploadPart
from app.domain.files import UploadStatus

COMPLETION_GRACE_SECONDS = 1800  # a completion that runs when its upload expires may take so much longer


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
