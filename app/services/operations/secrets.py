"""The encrypted columns: credentials of delivery targets, signing secrets of webhooks.

Which key protects what, and the change to a new key. The caller owns the transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from app.db import encryption
from app.db.encryption import Protection
from app.db.operations.status import server_time
from app.db.tables import DeliveryTarget, WebhookEndpoint
from app.db.webhooks import operator
from app.domain.webhooks import secret_hint
from app.errors import BadRequest

SecretRow = DeliveryTarget | WebhookEndpoint
KINDS: dict[type[SecretRow], str] = {DeliveryTarget: "delivery_target", WebhookEndpoint: "webhook_endpoint"}
COLUMNS: dict[type[SecretRow], tuple[str, ...]] = {
    DeliveryTarget: ("credentials",),
    WebhookEndpoint: ("secret", "previous_secret"),
}
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
    return [_view(keys, row, now) for row in _rows(session)]


def rotate(session: Session, keys: Sequence[str], limit: int) -> Rotation:
    """Re-encrypt at most `limit` secrets with the first key. Repeat until nothing remains. Raises BadRequest.

    A row is locked and read again before it is written, so a change by its owner at the same time is not lost.
    """
    if not keys:
        raise BadRequest("This server has no TUNERY_SECRET_KEYS; set it to a key, restart the service, and try again.")
    now = server_time(session)
    due = [row for row in _rows(session) if _is_due(keys, row, now)]
    rotated = 0
    for row in due[:limit]:
        locked = _lock(session, row)
        for name, value in _stored(locked, now).items() if locked is not None else ():
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
    return any(encryption.protection(keys, value)[0] in ROTATED for value in _stored(row, now).values())


def _view(keys: Sequence[str], row: SecretRow, now: datetime) -> SecretView:
    found = [encryption.protection(keys, value) for value in _stored(row, now).values()]
    worst, key = min(found, key=lambda each: WORST_FIRST.index(each[0]))
    return SecretView(KINDS[type(row)], row.id, row.name, row.project_id, worst, key)


def _rows(session: Session) -> Iterator[SecretRow]:
    """Every row with a secret, oldest first; the operator's webhook has its secret in a setting."""
    yield from session.scalars(
        select(DeliveryTarget).where(DeliveryTarget.credentials.is_not(None)).order_by(DeliveryTarget.seq)
    )
    yield from session.scalars(
        select(WebhookEndpoint).where(WebhookEndpoint.id != operator.ENDPOINT_ID).order_by(WebhookEndpoint.seq)
    )


def _stored(row: SecretRow, now: datetime) -> dict[str, str]:
    """The stored secrets of a row by column; not a previous one that signs no more at this time of PostgreSQL."""
    found = {name: getattr(row, name) for name in COLUMNS[type(row)]}
    if isinstance(row, WebhookEndpoint) and row.previous_secret_expires_at and row.previous_secret_expires_at <= now:
        del found["previous_secret"]
    return {name: value for name, value in found.items() if value is not None}


def _lock(session: Session, row: SecretRow) -> SecretRow | None:
    """Lock the row and read it again; None if it was deleted."""
    try:
        session.refresh(row, with_for_update={"key_share": True})
    except InvalidRequestError:
        return None
    return row
