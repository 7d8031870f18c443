"""The objects in storage that rows name, with what the rows know of their content. Never commits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import File, Snapshot, Upload, UploadPart
from app.domain.uploads import UploadStatus

MANIFEST = "MANIFEST.json"  # of a snapshot: the file whose digest is in its row


@dataclass(frozen=True)
class NamedObject:
    """An object that a row names. `sha256` is None where only the size, or neither, is in the row."""

    key: str
    size_bytes: int | None
    sha256: str | None


def named_objects(session: Session) -> Iterator[NamedObject]:
    """Every object of files, of pending uploads and of snapshots."""
    for file in session.scalars(select(File).where(File.purged_at.is_(None)).order_by(File.seq)):
        yield NamedObject(file.storage_key, file.bytes, file.sha256)
    pending = select(UploadPart).join(Upload, Upload.id == UploadPart.upload_id)
    for part in session.scalars(pending.where(Upload.status == UploadStatus.PENDING)):
        # of a later piece of a stream, the row has the digest of the whole content up to its end
        yield NamedObject(part.storage_key, part.bytes, None if part.start else part.sha256)
    for snapshot in session.scalars(select(Snapshot)):
        for name, key in snapshot.storage_keys.items():
            yield NamedObject(key, None, snapshot.manifest_sha256 if name == MANIFEST else None)
