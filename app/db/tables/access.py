"""Projects with their limits, API keys, permissions to use `ft:` models, idempotency keys, and the audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.base import Base, Flag, IndexedProjectId, Key, ProjectId, ProjectKey, Seq, Time, checks
from app.domain.access import scopes

LIMITS = (
    "max_stored_bytes",
    "max_queued_jobs",
    "max_running_jobs",
    "max_gpu_seconds_per_month",
    "max_requests_per_second",
)
ALL_SCOPES = text(f"'[\"{scopes.ALL}\"]'::jsonb")


class Project(Base):
    """NULL means no limit. `share_weight` is the project's relative share of GPU time when several projects wait."""

    __tablename__ = "projects"
    __table_args__ = (
        *checks(
            limits=(
                "max_stored_bytes >= 0 AND max_queued_jobs >= 0 AND max_running_jobs >= 0 "
                "AND max_gpu_seconds_per_month >= 0 AND max_requests_per_second >= 1"
            ),
            share_weight="share_weight > 0 AND share_weight < 'Infinity'",
        ),
    )

    id: Mapped[Key]
    seq: Mapped[Seq]
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[Time]
    archived_at: Mapped[datetime | None]
    max_stored_bytes: Mapped[int | None]
    max_queued_jobs: Mapped[int | None]
    max_running_jobs: Mapped[int | None]
    max_gpu_seconds_per_month: Mapped[int | None]
    max_requests_per_second: Mapped[int | None]
    share_weight: Mapped[float] = mapped_column(server_default=text("1"))
    may_be_urgent: Mapped[Flag]  # whether its jobs may precede those of other projects
    usage: Any = None  # no column: an app.db.access.usage.QuotaUsage, once a service has counted it

    @property
    def status(self) -> Literal["active", "archived"]:
        return "active" if self.archived_at is None else "archived"

    @property
    def limits(self) -> dict[str, int | None]:
        return {limit: getattr(self, limit) for limit in LIMITS}


class ApiKey(Base):
    """Only the SHA-256 of the secret is stored: it has 256 random bits, so a slow hash would add no security.

    After a rotation the previous secret stays valid until `previous_expires_at`.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        *checks(
            previous_whole="(previous_secret_sha256 IS NULL) = (previous_expires_at IS NULL)",
            previous_differs="previous_secret_sha256 <> secret_sha256",
            scopes="jsonb_typeof(scopes) = 'array' AND scopes <> '[]'::jsonb",
        ),
    )

    id: Mapped[Key]
    seq: Mapped[Seq]
    project_id: Mapped[IndexedProjectId]
    name: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(unique=True)
    redacted: Mapped[str] = mapped_column(server_default="")  # enough characters of the secret to recognize the key
    previous_secret_sha256: Mapped[str | None] = mapped_column(unique=True)
    previous_expires_at: Mapped[datetime | None]
    scopes: Mapped[list[str]] = mapped_column(server_default=ALL_SCOPES)
    created_at: Mapped[Time]
    rotated_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    secret: str | None = None  # no column: the whole key, once, after its creation or a rotation
    project: Mapped[Project] = relationship(viewonly=True)

    @property
    def is_admin(self) -> bool:
        return scopes.ADMIN in self.scopes

    @property
    def status(self) -> Literal["active", "expired", "revoked"]:
        """For display; requests are authorized by PostgreSQL's clock."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= datetime.now(UTC) else "active"

    @property
    def owner_project_access(self) -> Literal["active", "inactive"]:
        return "active" if self.status == "active" else "inactive"


class RetiredApiKey(Base):
    """The SHA-256 of a secret that two rotations have replaced. A file may still have it, and it stays invalid."""

    __tablename__ = "retired_api_keys"

    secret_sha256: Mapped[Key]
    key_id: Mapped[str]


class CheckpointPermission(Base):
    """The project `project_id` owns the model, `grantee_id` may use it; to withdraw the permission deletes the row."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        UniqueConstraint("model_id", "grantee_id"),
        *checks(grantee_is_another="project_id <> grantee_id"),
    )

    id: Mapped[Key]
    seq: Mapped[Seq]
    project_id: Mapped[ProjectId]
    model_id: Mapped[str] = mapped_column(ForeignKey("tuned_models.id"))
    grantee_id: Mapped[IndexedProjectId]
    created_at: Mapped[Time]


class IdempotencyKey(Base):
    """Written in the transaction that creates the requested object, so either both exist or neither does."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        *checks(
            answer_whole="(status IS NULL) = (answer IS NULL)",
            status="status BETWEEN 200 AND 299",  # an error response is not stored, as nothing was created
        ),
        Index("ix_idempotency_keys_created_at", "created_at"),
    )

    project_id: Mapped[ProjectKey]
    key: Mapped[Key]
    method: Mapped[str]
    path: Mapped[str]
    fingerprint: Mapped[str]  # SHA-256 of the request body
    status: Mapped[int | None]  # NULL, as `answer`, only within the transaction that reserves the key
    answer: Mapped[str | None]  # JSON
    created_at: Mapped[Time]


class AuditEntry(Base):
    """`project_id` is the project of what was changed; NULL for what belongs to none, such as a base model.

    `actor_id` is a key's id, or an operator's account and host; without a foreign key, as an entry outlives its key.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        *checks(actor_type="actor_type IN ('api_key', 'operator', 'system')"),
        Index("ix_audit_log_page", "project_id", "seq"),
    )

    id: Mapped[Key]
    seq: Mapped[Seq]
    project_id: Mapped[ProjectId | None]
    created_at: Mapped[Time]
    action: Mapped[str]
    actor_type: Mapped[str]
    actor_id: Mapped[str]
    object_ids: Mapped[list[str]]
    address: Mapped[str | None]
    request_id: Mapped[str | None]

    @property
    def actor(self) -> dict[str, Any]:
        api_key = {"id": self.actor_id} if self.actor_type == "api_key" else None
        return {"type": self.actor_type, "id": self.actor_id, "api_key": api_key}

    @property
    def project(self) -> dict[str, str] | None:
        return None if self.project_id is None else {"id": self.project_id}
