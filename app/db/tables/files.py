"""Files; multipart and resumable uploads, and their parts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, and_, func, or_, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.ids import new_id
from app.db.tables.base import Base, IndexedProjectId, Key, ProjectId, Seq, Time, checks, sql_string_list
from app.domain.files import UploadStatus


class File(Base):
    """`line_count` is the number of non-blank lines of a validated JSONL file, from which "auto" is resolved."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_page", "project_id", "seq", postgresql_where=text("deleted_at IS NULL")),
        Index(
            "ix_files_stored", "project_id", postgresql_include=["bytes"], postgresql_where=text("purged_at IS NULL")
        ),
        *checks(
            bytes="bytes >= 0",
            archive_has_no_object="archive_members IS NULL OR purged_at IS NOT NULL",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("file"))
    seq: Mapped[Seq]
    project_id: Mapped[ProjectId]
    job_id: Mapped[str | None] = mapped_column(index=True)  # the job that produced the file
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str] = mapped_column(index=True)
    line_count: Mapped[int | None]
    status: Mapped[str] = mapped_column(server_default="processed")
    created_at: Mapped[Time]
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    origin: Mapped[dict[str, Any] | None]  # a files.FileOrigin: where an imported file comes from
    # A file that was made of another one: how (files.FilePreparation), and which file has the rest of its rows.
    preparation: Mapped[dict[str, Any] | None]
    held_out_file_id: Mapped[str | None]  # of a training file
    training_file_id: Mapped[str | None]  # of a held-out file
    purged_at: Mapped[datetime | None]  # since when storage has no object of this row: its content was deleted
    # [{name, key, bytes}]: a tar that is assembled when it is read; its key names no object.
    archive_members: Mapped[list[dict[str, Any]] | None]

    @classmethod
    def is_available(cls) -> ColumnElement[bool]:
        """SQL condition: the file is neither deleted nor expired."""
        return and_(cls.deleted_at.is_(None), or_(cls.expires_at.is_(None), cls.expires_at > func.clock_timestamp()))


class Upload(Base):
    """`writer` numbers the requests that send the content as one stream: only the latest may add pieces."""

    __tablename__ = "uploads"
    __table_args__ = (
        *checks(
            status=f"status IN ({sql_string_list(UploadStatus)})",
            completed="(status = 'completed') = (file_id IS NOT NULL)",
            bytes="bytes >= 0",
        ),
        Index("ix_uploads_pending", "expires_at", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[Key]
    project_id: Mapped[IndexedProjectId]
    filename: Mapped[str]
    purpose: Mapped[str]
    mime_type: Mapped[str]
    bytes: Mapped[int]  # the size of the file, declared by the client
    file_expires_after_seconds: Mapped[int | None]
    status: Mapped[str] = mapped_column(server_default="pending")
    writer: Mapped[int] = mapped_column(server_default=text("0"))
    part_ids: Mapped[list[str] | None]  # of a completed upload: its parts in the order of the file
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[Time]
    expires_at: Mapped[datetime]
    # No columns: what a response shows besides, once a service has read it.
    current_status: UploadStatus = UploadStatus.PENDING  # "expired" as soon as its time is over
    received_bytes: int = 0
    file: File | None = None


class UploadPart(Base):
    """A posted part (`start` NULL), or a piece of streamed content that begins at byte `start`.

    `sha256` is that of the part. Of a piece it is that of the content up to the end of the piece, if the process that
    received it had received all earlier pieces, else that of the piece.
    """

    __tablename__ = "upload_parts"
    __table_args__ = (
        *checks(
            bytes="bytes >= 0",
            start="start >= 0",
        ),
        Index("ix_upload_parts_start", "upload_id", "start", unique=True, postgresql_where=text("start IS NOT NULL")),
    )

    id: Mapped[Key]
    project_id: Mapped[ProjectId]
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    start: Mapped[int | None]
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[Time]
