"""The bootstrap key: in containers the first admin key is a secret that the operator made and supplies in a file."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import IntegrityError

from app.db.access.audit import AuditContext, audited_as
from app.db.engine import Sessions, transaction
from app.domain.access.api_keys import MIN_SECRET_CHARACTERS, is_valid_secret
from app.log import get_logger
from app.services.access import keys, projects

KEY_NAME = "admin-key-file"

log = get_logger(__name__)


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
        if keys.was_issued(session, secret):
            return
        project = projects.ensure(session, projects.DEFAULT_PROJECT)
        context.project_id = project.id
        keys.issue(session, project, KEY_NAME, keys.ADMIN_SCOPES, secret=secret)
    log.info("issued the first admin key", project=projects.DEFAULT_PROJECT)
