"""In containers the first admin key comes from a file: a secret that the operator made, known before the start."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import IntegrityError

from app.db import keys
from app.db.engine import Sessions, transaction
from app.log import get_logger

MIN_CHARACTERS = 16
KEY_NAME = "admin-key-file"

log = get_logger(__name__)


def ensure_first_key(sessions: Sessions, path: Path) -> None:
    """Make the content of `path` an admin key of the project `default`, unless it is or was one.

    A revoked key stays revoked. Raises ValueError for a secret that is too short, OSError for an unreadable file.
    """
    secret = path.read_text(encoding="utf-8").strip()
    if len(secret) < MIN_CHARACTERS or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ValueError(f"{path}: an admin key is at least {MIN_CHARACTERS} printable ASCII characters without spaces")
    try:
        _issue_once(sessions, secret)
    except IntegrityError:
        log.info("another process issued the first key", file=str(path))


def _issue_once(sessions: Sessions, secret: str) -> None:
    with transaction(sessions) as session:
        if keys.was_issued(session, secret):
            return
        project = keys.ensure_project(session, keys.DEFAULT_PROJECT)
        keys.issue(session, project, KEY_NAME, is_admin=True, secret=secret)
    log.info("issued the first admin key", project=keys.DEFAULT_PROJECT)
