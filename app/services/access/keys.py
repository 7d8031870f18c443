"""API keys: creation, rotation, and the questions whether a secret is valid. The caller owns the transaction."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, func, not_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.access.audit import AuditContext, audited_as
from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, Project, RetiredApiKey
from app.domain.access import scopes
from app.domain.access.api_keys import MIN_SECRET_CHARACTERS, hash_key, is_valid_secret, new_secret, redact
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest
from app.log import get_logger
from app.services import resources
from app.services.access import projects
from app.services.access.projects import validate_name
from app.services.resources import Page

ADMIN_SCOPES = (scopes.ALL, scopes.ADMIN)  # of the first key of a new service
EXPIRY_RANGE_SECONDS = (60, 10 * 365 * 86_400)
OVERLAP_RANGE_SECONDS = (0, 90 * 86_400)
DEFAULT_OVERLAP_SECONDS = 86_400
FIRST_KEY_NAME = "admin-key-file"

log = get_logger(__name__)


def create(
    session: Session, project: Project, name: str, key_scopes: Sequence[str], expires_in_seconds: int | None
) -> ApiKey:
    """Issue a key of a user. Raises BadRequest."""
    if project.archived_at is not None:
        raise BadRequest(
            f"Project {as_json(project.name)} is archived, so its keys are not valid; unarchive it first.",
            "project_id",
            "invalid_project_state",
        )
    _check_range("expires_in_seconds", expires_in_seconds, EXPIRY_RANGE_SECONDS, "; leave it out for no expiry")
    key_scopes = scopes.validated_scopes(key_scopes)
    return issue(session, project, validate_name(name), key_scopes, expires_in_seconds=expires_in_seconds)


def issue(
    session: Session,
    project: Project,
    name: str,
    key_scopes: Sequence[str] = (scopes.ALL,),
    secret: str | None = None,
    expires_in_seconds: int | None = None,
) -> ApiKey:
    """Insert a key. `secret` is one that the operator supplies (a container's secret file), else it is a new one."""
    number = secrets.token_hex(6)
    key = ApiKey(id=f"key_{number}", project_id=project.id, name=name, scopes=list(key_scopes))
    key.expires_at = _from_now(expires_in_seconds)
    return _store(session, key, secret or new_secret(number))


def change(session: Session, project_id: str, key_id: str, given: Mapping[str, Any]) -> ApiKey:
    """Change the fields that are not None. Raises NotFound, and BadRequest for a key that is not active."""
    key = _get_active(session, project_id, key_id)
    seconds = given.get("expires_in_seconds")
    _check_range("expires_in_seconds", seconds, EXPIRY_RANGE_SECONDS, "; leave it out for no expiry")
    if given.get("name") is not None:
        key.name = validate_name(given["name"])
    if given.get("scopes") is not None:
        key.scopes = scopes.validated_scopes(given["scopes"])
    if seconds is not None:
        key.expires_at = _from_now(seconds)
    return resources.store(session, key)


def rotate(session: Session, project_id: str | None, key_id: str, overlap_seconds: int) -> ApiKey:
    """Replace the secret; the old one stays valid for `overlap_seconds`. Raises NotFound, BadRequest."""
    key = _get_active(session, project_id, key_id)
    _check_range("overlap_seconds", overlap_seconds, OVERLAP_RANGE_SECONDS)
    if key.previous_secret_sha256 is not None:
        session.merge(RetiredApiKey(secret_sha256=key.previous_secret_sha256, key_id=key.id))
    key.previous_secret_sha256 = key.secret_sha256
    key.previous_expires_at = _from_now(overlap_seconds)
    key.rotated_at = func.clock_timestamp()
    return _store(session, key, new_secret(key.id.removeprefix("key_")))


def revoke(session: Session, project_id: str | None, key_id: str) -> ApiKey:
    """Revoke a key with all its secrets at once; no error if it is revoked already. Raises NotFound."""
    key = get(session, project_id, key_id, lock=True)
    return resources.store(session, key, revoked_at=func.clock_timestamp()) if key.revoked_at is None else key


def get(session: Session, project_id: str | None, key_id: str, lock: bool = False) -> ApiKey:
    """A key of the project, or of any project without `project_id`. Raises NotFound."""
    return resources.get(session, ApiKey, key_id, *_scope(project_id), lock=lock)


def page(
    session: Session, project_id: str | None, page: Page, with_revoked: bool, is_active: bool | None = None
) -> list[ApiKey]:
    """A page of keys of the project, or of all projects without `project_id`. `is_active` None: active or not."""
    only: list[ColumnElement[bool]] = [] if with_revoked else [ApiKey.revoked_at.is_(None)]
    if is_active is not None:
        only.append(_is_usable() if is_active else not_(_is_usable()))
    return resources.page(session, ApiKey, *page, *_scope(project_id), only=tuple(only))


def was_issued(session: Session, secret: str) -> bool:
    """Whether the secret is or was a key's, revoked keys and earlier rotations included."""
    digest = hash_key(secret)
    has_secret = or_(ApiKey.secret_sha256 == digest, ApiKey.previous_secret_sha256 == digest)
    is_known = session.scalar(select(ApiKey.id).where(has_secret)) is not None
    return is_known or session.get(RetiredApiKey, digest) is not None


def has_usable_key(session: Session) -> bool:
    """Whether any key of an unarchived project is valid."""
    query = select(ApiKey.id).join(Project, Project.id == ApiKey.project_id)
    return session.scalar(query.where(_is_usable(), Project.archived_at.is_(None)).limit(1)) is not None


def _get_active(session: Session, project_id: str | None, key_id: str) -> ApiKey:
    key = get(session, project_id, key_id, lock=True)
    if key.status != "active":
        raise BadRequest(f"Key {key.id} is {key.status}; only an active key can be changed. Create another.", "id")
    return key


def _store(session: Session, key: ApiKey, secret: str) -> ApiKey:
    """Write the key with this secret, which the returned row shows."""
    resources.store(session, key, secret_sha256=hash_key(secret), redacted=redact(secret))
    key.secret = secret
    return key


def _scope(project_id: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if project_id is None else (ApiKey.project_id == project_id,)


def _is_usable() -> ColumnElement[bool]:
    is_unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.clock_timestamp())
    return and_(ApiKey.revoked_at.is_(None), is_unexpired)


def _check_range(name: str, seconds: int | None, allowed: tuple[int, int], remedy: str = "") -> None:
    minimum, maximum = allowed
    if seconds is not None and not minimum <= seconds <= maximum:
        raise BadRequest(f"{name}: {seconds} is not from {minimum} to {maximum}{remedy}", name)


def _from_now(seconds: int | None) -> Any:
    return None if seconds is None else func.clock_timestamp() + timedelta(seconds=seconds)


def ensure_first_key(sessions: Sessions, path: Path) -> None:
    """Insert the content of `path` as an admin key of the project `default`, unless it is or was a key.

    A revoked key stays revoked. Raises ValueError for a secret that is too short, OSError for an unreadable file.
    """
    secret = path.read_text(encoding="utf-8").strip()
    if not is_valid_secret(secret):
        raise ValueError(
            f"{path}: an admin key is at least {MIN_SECRET_CHARACTERS} printable ASCII characters without spaces"
        )
    try:
        _issue_unless_known(sessions, secret)
    except IntegrityError:
        log.info("another process issued the first key", file=str(path))


def _issue_unless_known(sessions: Sessions, secret: str) -> None:
    context = AuditContext(action="keys.first", actor_type="system", actor_id="api")
    with audited_as(context), transaction(sessions) as session:
        if was_issued(session, secret):
            return
        project = projects.ensure(session, projects.DEFAULT_PROJECT)
        context.project_id = project.id
        issue(session, project, FIRST_KEY_NAME, ADMIN_SCOPES, secret=secret)
    log.info("issued the first admin key", project=projects.DEFAULT_PROJECT)
