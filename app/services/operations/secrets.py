"""Use cases of admins on encrypted secrets: which key protects what, and the change to a new key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from app.db import encryption
from app.db.encryption import Protection
from app.db.operations import secrets
from app.db.operations.secrets import SecretRow
from app.db.operations.status import server_time
from app.db.tables import WebhookEndpoint
from app.domain.webhooks import secret_hint
from app.errors import BadRequest

WORST_FIRST = (Protection.LOST, Protection.UNENCRYPTED, Protection.OLD_KEY, Protection.CURRENT)
ROTATED = (Protection.UNENCRYPTED, Protection.OLD_KEY)


@dataclass(frozen=True)
class SecretView:
    """`key` is the fingerprint of the key that protects it."""

    kind: str
    id: str
    name: str
    project_id: str | None
    protection: Protection
    key: str | None


@dataclass(frozen=True)
class Rotation:
    rotated: int
    remaining: int  # that another call re-encrypts
    lost: int


def view(session: Session, keys: Sequence[str]) -> list[SecretView]:
    """Every secret with its protection; with several columns, the worst of them."""
    now = server_time(session)
    return [_view(keys, row, now) for row in secrets.rows(session)]


def rotate(session: Session, keys: Sequence[str], limit: int) -> Rotation:
    """Re-encrypt at most `limit` secrets with the first key. Repeat until nothing remains. Raises BadRequest.

    A row is locked and read again before it is written, so a change by its owner at the same time is not lost.
    """
    if not keys:
        raise BadRequest("This server has no TUNERY_SECRET_KEYS; set it to a key, restart the service, and try again.")
    now = server_time(session)
    due = [row for row in secrets.rows(session) if _is_due(keys, row, now)]
    rotated = 0
    for row in due[:limit]:
        locked = secrets.lock(session, row)
        for name, value in secrets.stored(locked, now).items() if locked is not None else ():
            if encryption.protection(keys, value)[0] in ROTATED:
                secret = encryption.reveal(keys, value)
                if isinstance(locked, WebhookEndpoint) and name == "secret":
                    locked.secret_hint = secret_hint(secret)
                setattr(locked, name, encryption.encrypt(keys, secret))
        rotated += locked is not None
    session.flush()
    return Rotation(rotated, max(0, len(due) - limit), count_lost(session, keys))


def count_lost(session: Session, keys: Sequence[str]) -> int:
    """The secrets that none of the keys decrypts."""
    return sum(each.protection == Protection.LOST for each in view(session, keys))


def _is_due(keys: Sequence[str], row: SecretRow, now: datetime) -> bool:
    """Whether a secret of the row is to be re-encrypted, also if another one of it is lost."""
    return any(encryption.protection(keys, value)[0] in ROTATED for value in secrets.stored(row, now).values())


def _view(keys: Sequence[str], row: SecretRow, now: datetime) -> SecretView:
    found = [encryption.protection(keys, value) for value in secrets.stored(row, now).values()]
    worst, key = min(found, key=lambda each: WORST_FIRST.index(each[0]))
    return SecretView(secrets.KINDS[type(row)], row.id, row.name, row.project_id, worst, key)
