"""Responses to requests with an `Idempotency-Key`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, now


class IdempotencyKey(Base):
    """Written in the transaction that creates the requested object, so either both exist or neither does."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("(status IS NULL) = (answer IS NULL)", name="answer_whole"),
        CheckConstraint(
            "status BETWEEN 200 AND 299", name="status"
        ),  # an error response is not stored, as nothing was created
        Index("ix_idempotency_keys_created_at", "created_at"),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str]
    path: Mapped[str]
    fingerprint: Mapped[str]  # SHA-256 of the request body
    status: Mapped[int | None]  # NULL, as `answer`, only within the transaction that reserves the key
    answer: Mapped[str | None]  # JSON
    created_at: Mapped[datetime] = now()
