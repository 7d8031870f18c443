"""Multipart and resumable uploads, and their parts."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now, sql_string_list
from app.domain.files.uploads import UploadStatus


class Upload(Base):
    """`writer` numbers the requests that send the content as one stream: only the latest may add pieces."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint(f"status IN ({sql_string_list(UploadStatus)})", name="status"),
        CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", name="completed"),
        CheckConstraint("bytes >= 0", name="bytes"),
        Index("ix_uploads_pending", "expires_at", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    mime_type: Mapped[str]
    bytes: Mapped[int]  # the size of the file, declared by the client
    file_expires_after_seconds: Mapped[int | None]
    status: Mapped[str] = mapped_column(server_default="pending")
    writer: Mapped[int] = mapped_column(server_default=text("0"))
    part_ids: Mapped[list[str] | None]  # of a completed upload: its parts in the order of the file
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[datetime] = now()
    expires_at: Mapped[datetime]


class UploadPart(Base):
    """A posted part (`start` NULL), or a piece of streamed content that begins at byte `start`.

    `sha256` is that of the part. Of a piece it is that of the content up to the end of the piece, if the process that
    received it had received all earlier pieces, else that of the piece.
    """

    __tablename__ = "upload_parts"
    __table_args__ = (
        CheckConstraint("bytes >= 0", name="bytes"),
        CheckConstraint("start >= 0", name="start"),
        Index("ix_upload_parts_start", "upload_id", "start", unique=True, postgresql_where=text("start IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    start: Mapped[int | None]
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = now()
