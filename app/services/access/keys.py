"""Use cases of admins on API keys. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from app.db.access import keys
from app.db.access.keys import IssuedKey
from app.db.tables import ApiKey, Project
from app.domain.access import scopes
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound
from app.services.access.projects import validate_name

EXPIRY_RANGE_SECONDS = (60, 10 * 365 * 86_400)
OVERLAP_RANGE_SECONDS = (0, 90 * 86_400)
DEFAULT_OVERLAP_SECONDS = 86_400


def create(
    session: Session, project: Project, name: str, key_scopes: Sequence[str], expires_in_seconds: int | None
) -> IssuedKey:
    """Issue a key. Raises BadRequest."""
    if project.archived_at is not None:
        raise BadRequest(
            f"Project {as_json(project.name)} is archived, so its keys are not valid; unarchive it first.",
            "project_id",
            "invalid_project_state",
        )
    _check_expiry(expires_in_seconds)
    return keys.issue(
        session,
        project,
        validate_name(name),
        scopes.validated_scopes(key_scopes),
        expires_in_seconds=expires_in_seconds,
    )


def modify(
    session: Session,
    project_id: str,
    key_id: str,
    name: str | None,
    key_scopes: Sequence[str] | None,
    expires_in_seconds: int | None,
) -> ApiKey:
    """Change the settings that are not None. Raises NotFound, and BadRequest for a key that is not active."""
    key = _get_active(session, project_id, key_id)
    _check_expiry(expires_in_seconds)
    if name is not None:
        key.name = validate_name(name)
    if key_scopes is not None:
        key.scopes = scopes.validated_scopes(key_scopes)
    if expires_in_seconds is not None:
        keys.set_expiry(session, key, expires_in_seconds)
    session.flush()
    return key


def rotate(session: Session, project_id: str | None, key_id: str, overlap_seconds: int) -> tuple[ApiKey, str]:
    """Replace the secret; the old one stays valid for `overlap_seconds`. Raises NotFound, BadRequest."""
    key = _get_active(session, project_id, key_id)
    minimum, maximum = OVERLAP_RANGE_SECONDS
    if not minimum <= overlap_seconds <= maximum:
        raise BadRequest(f"overlap_seconds: {overlap_seconds} is not from {minimum} to {maximum}", "overlap_seconds")
    return key, keys.rotate(session, key, overlap_seconds)


def revoke(session: Session, project_id: str | None, key_id: str) -> ApiKey:
    """Revoke a key with all its secrets at once; no error if it is revoked already. Raises NotFound."""
    key = get(session, project_id, key_id)
    keys.revoke(session, key.id)
    session.refresh(key)
    return key


def get(session: Session, project_id: str | None, key_id: str, lock: bool = False) -> ApiKey:
    key = keys.get(session, key_id, project_id, lock)
    if key is None:
        raise NotFound(f"No such API key: {unquoted(key_id)}", "id")
    return key


def page(
    session: Session,
    project_id: str | None,
    limit: int,
    after: str | None,
    with_revoked: bool,
    is_active: bool | None = None,
) -> list[ApiKey]:
    """A page of keys of the project, or of all projects without `project_id`. Raises BadRequest for `after`."""
    last = None
    if after is not None:
        last = keys.get(session, after, project_id)
        if last is None:
            text = f"after: there is no key {as_json(after)} here; give the id of the last item of the page before"
            raise BadRequest(text, "after")
    return keys.page(session, project_id, limit, last, with_revoked, is_active)


def status(key: ApiKey) -> str:
    """`active`, `expired` or `revoked`, for display; requests are authorized by PostgreSQL's clock."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "active"


def _get_active(session: Session, project_id: str | None, key_id: str) -> ApiKey:
    key = get(session, project_id, key_id, lock=True)
    key_status = status(key)
    if key_status != "active":
        raise BadRequest(f"Key {key.id} is {key_status}; only an active key can be changed. Create another.", "id")
    return key


def _check_expiry(expires_in_seconds: int | None) -> None:
    minimum, maximum = EXPIRY_RANGE_SECONDS
    if expires_in_seconds is not None and not minimum <= expires_in_seconds <= maximum:
        raise BadRequest(
            f"expires_in_seconds: {expires_in_seconds} is not from {minimum} to {maximum}; leave it out for no expiry",
            "expires_in_seconds",
        )
