"""What a request did that came with an `Idempotency-Key`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, now


class IdempotencyKey(Base):
    """Written in the transaction of what was created: the one is there if and only if the other is."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("(status IS NULL) = (answer IS NULL)", name="answer_whole"),
        CheckConstraint("status BETWEEN 200 AND 299", name="status"),  # a refusal created nothing and is not kept
        Index("ix_idempotency_keys_created_at", "created_at"),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str]
    path: Mapped[str]
    fingerprint: Mapped[str]  # SHA-256 of what was asked for
    status: Mapped[int | None]  # this and the answer are NULL only inside the transaction that writes them
    answer: Mapped[str | None]  # JSON
    created_at: Mapped[datetime] = now()
