"""Projects and API keys. A key is `tnry_<id>_<secret>`; the secret's 256 random bits are kept as a SHA-256 only."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import ApiKey, Project

PREFIX = "tnry"
DEFAULT_PROJECT = "default"


@dataclass(frozen=True)
class IssuedKey:
    """`secret` is the whole key, shown once."""

    id: str
    secret: str
    project: str


def ensure_project(session: Session, name: str) -> Project:
    """The project of this name, created if it is new."""
    known = session.scalar(select(Project).where(Project.name == name))
    if known is not None:
        return known
    project = Project(id=new_id("proj", "_"), name=name)
    session.add(project)
    session.flush()
    return project


def get_project(session: Session, name: str) -> Project | None:
    return session.scalar(select(Project).where(Project.name == name))


def issue(
    session: Session, project: Project, name: str, is_admin: bool = False, secret: str | None = None
) -> IssuedKey:
    """Create a key; `secret` brings one from outside (a container's secret file)."""
    key_id = secrets.token_hex(6)
    whole = secret or f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    session.add(
        ApiKey(id=f"key_{key_id}", project_id=project.id, name=name, secret_sha256=hash_key(whole), is_admin=is_admin)
    )
    session.flush()
    return IssuedKey(f"key_{key_id}", whole, project.name)


def find(session: Session, secret: str) -> ApiKey | None:
    """The live key with this secret. The look-up is by hash, so its timing tells nothing of the secret."""
    return session.scalar(select(ApiKey).where(ApiKey.secret_sha256 == hash_key(secret), ApiKey.revoked_at.is_(None)))


def was_issued(session: Session, secret: str) -> bool:
    """True for every secret that ever was a key's, revoked ones included."""
    return session.scalar(select(ApiKey.id).where(ApiKey.secret_sha256 == hash_key(secret))) is not None


def touch(session: Session, key: ApiKey) -> None:
    """Remember the last use, at most once a minute: polling must not write a row per request."""
    session.execute(
        update(ApiKey)
        .where(
            ApiKey.id == key.id,
            or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.clock_timestamp() - timedelta(minutes=1)),
        )
        .values(last_used_at=func.clock_timestamp())
    )


def list_keys(session: Session) -> list[tuple[ApiKey, Project]]:
    rows = session.execute(
        select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id).order_by(ApiKey.created_at)
    )
    return [(key, project) for key, project in rows]


def revoke(session: Session, key_id: str) -> bool:
    """False if there is no live key of this id."""
    revoked = session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=func.clock_timestamp())
        .returning(ApiKey.id)
    )
    return revoked.scalar_one_or_none() is not None


def any_key(session: Session) -> bool:
    return session.scalar(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1)) is not None


def hash_key(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
