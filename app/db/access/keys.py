"""API keys: `tnry_<id>_<secret>`, stored as a SHA-256 only (the secret has 256 random bits). Never commits."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, not_, or_, select, update
from sqlalchemy.orm import Session

from app.db.access.projects import DEFAULT_PROJECT as DEFAULT_PROJECT
from app.db.access.projects import ensure as ensure_project
from app.db.access.projects import get_by_name as get_project
from app.db.tables import ApiKey, Project, RetiredApiKey
from app.domain.access import scopes

__all__ = ["DEFAULT_PROJECT", "ensure_project", "get_project"]

PREFIX = "tnry"
ADMIN_SCOPES = (scopes.ALL, scopes.ADMIN)  # of the first key of a new service
MIN_SECRET_CHARACTERS = 20
SHOWN_CHARACTERS = 4
MIN_CHARACTERS_TO_SHOW = 40  # a shorter secret, supplied by the operator, is redacted completely


@dataclass(frozen=True)
class IssuedKey:
    """`secret` is the complete key, which is shown once."""

    id: str
    secret: str
    project: str


def issue(
    session: Session,
    project: Project,
    name: str,
    key_scopes: Sequence[str] = (scopes.ALL,),
    secret: str | None = None,
    expires_in_seconds: int | None = None,
) -> IssuedKey:
    """Create a key; `secret` is one that the operator supplies (a container's secret file), else a new one is made."""
    number = secrets.token_hex(6)
    secret = secret or _new_secret(number)
    session.add(
        ApiKey(
            id=f"key_{number}",
            project_id=project.id,
            name=name,
            secret_sha256=hash_key(secret),
            redacted=_redact(secret),
            scopes=list(key_scopes),
            expires_at=_in_seconds(expires_in_seconds),
        )
    )
    session.flush()
    return IssuedKey(f"key_{number}", secret, project.name)


def rotate(session: Session, key: ApiKey, overlap_seconds: int) -> str:
    """Replace the secret and return the new one; the previous one stays valid for `overlap_seconds`."""
    secret = _new_secret(key.id.removeprefix("key_"))
    if key.previous_secret_sha256 is not None:
        session.merge(RetiredApiKey(secret_sha256=key.previous_secret_sha256, key_id=key.id))
    key.previous_secret_sha256 = key.secret_sha256
    key.previous_expires_at = _in_seconds(overlap_seconds)
    key.secret_sha256 = hash_key(secret)
    key.redacted = _redact(secret)
    key.rotated_at = func.clock_timestamp()
    session.flush()
    session.refresh(key)
    return secret


def set_expiry(session: Session, key: ApiKey, expires_in_seconds: int | None) -> None:
    key.expires_at = _in_seconds(expires_in_seconds)
    session.flush()
    session.refresh(key)


def find_by_secret(session: Session, secret: str) -> ApiKey | None:
    """The usable key with this secret, or with this previous secret while a rotation overlaps."""
    digest = hash_key(secret)
    is_previous = and_(ApiKey.previous_secret_sha256 == digest, ApiKey.previous_expires_at > func.clock_timestamp())
    return session.scalar(select(ApiKey).where(or_(ApiKey.secret_sha256 == digest, is_previous), _is_usable()))


def was_issued(session: Session, secret: str) -> bool:
    """Whether the secret is or was a key's, revoked keys and earlier rotations included."""
    digest = hash_key(secret)
    has_secret = or_(ApiKey.secret_sha256 == digest, ApiKey.previous_secret_sha256 == digest)
    is_known = session.scalar(select(ApiKey.id).where(has_secret)) is not None
    return is_known or session.get(RetiredApiKey, digest) is not None


def get(session: Session, key_id: str, project_id: str | None = None, lock: bool = False) -> ApiKey | None:
    """A key of the project, or of any project without `project_id`; `lock` locks the row until the transaction ends."""
    query = select(ApiKey).where(ApiKey.id == key_id)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    if lock:
        query = query.with_for_update()
    return session.scalar(query)


def page(
    session: Session,
    project_id: str | None,
    limit: int,
    after: ApiKey | None = None,
    with_revoked: bool = False,
    is_active: bool | None = None,
) -> list[ApiKey]:
    """A page of keys, newest first; `after` is the last key of the previous page. `is_active` None: active or not.

    Without `project_id`: the keys of all projects.
    """
    query = select(ApiKey).order_by(ApiKey.seq.desc()).limit(limit)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    if after is not None:
        query = query.where(ApiKey.seq < after.seq)
    if not with_revoked:
        query = query.where(ApiKey.revoked_at.is_(None))
    if is_active is not None:
        query = query.where(_is_usable() if is_active else not_(_is_usable()))
    return list(session.scalars(query))


def list_keys(session: Session) -> list[tuple[ApiKey, Project]]:
    rows = session.execute(select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id).order_by(ApiKey.seq))
    return [(key, project) for key, project in rows]


def revoke(session: Session, key_id: str) -> bool:
    """Revoke a key; False if there is no unrevoked key with this id."""
    revoked = session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=func.clock_timestamp())
        .returning(ApiKey.id)
    )
    return revoked.scalar_one_or_none() is not None


def has_usable_key(session: Session) -> bool:
    """Whether any key of an unarchived project is valid."""
    query = select(ApiKey.id).join(Project, Project.id == ApiKey.project_id)
    return session.scalar(query.where(_is_usable(), Project.archived_at.is_(None)).limit(1)) is not None


def hash_key(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def is_valid_secret(secret: str) -> bool:
    """Whether a secret that the operator supplies is long enough and allowed in a header."""
    return len(secret) >= MIN_SECRET_CHARACTERS and secret.isascii() and secret.isprintable() and " " not in secret


def _is_usable() -> ColumnElement[bool]:
    return and_(
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.clock_timestamp()),
    )


def _new_secret(number: str) -> str:
    return f"{PREFIX}_{number}_{secrets.token_urlsafe(32)}"


def _redact(secret: str) -> str:
    if len(secret) < MIN_CHARACTERS_TO_SHOW:
        return "…"
    return f"{secret[: len(PREFIX) + 1 + SHOWN_CHARACTERS]}…{secret[-SHOWN_CHARACTERS:]}"


def _in_seconds(seconds: int | None) -> ColumnElement[Any] | None:
    return None if seconds is None else func.clock_timestamp() + timedelta(seconds=seconds)
