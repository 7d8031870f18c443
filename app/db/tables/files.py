"""Files."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now


class File(Base):
    """`line_count` is the number of non-blank lines of a validated JSONL file, from which "auto" is resolved."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_page", "project_id", "seq", postgresql_where=text("deleted_at IS NULL")),
        Index(
            "ix_files_stored", "project_id", postgresql_include=["bytes"], postgresql_where=text("purged_at IS NULL")
        ),
        CheckConstraint("bytes >= 0", name="bytes"),
        CheckConstraint("archive_members IS NULL OR purged_at IS NOT NULL", name="archive_has_no_object"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(index=True)  # the job that produced the file
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str] = mapped_column(index=True)
    line_count: Mapped[int | None]
    status: Mapped[str] = mapped_column(server_default="processed")
    created_at: Mapped[datetime] = now()
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    origin: Mapped[dict[str, Any] | None]  # a files.FileOrigin: where an imported file comes from
    purged_at: Mapped[datetime | None]  # since when storage has no object of this row: its content was deleted
    archive_members: Mapped[
        list[dict[str, Any]] | None
    ]  # [{name, key, bytes}]: a tar that is assembled when it is read
