"""Idempotency keys: reserved, and given a response, in the transaction that creates what the request asks for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, bindparam, delete, func, select, text, update
from sqlalchemy.orm import Session

from app.db.fast_reads.pool import AsyncConnections
from app.db.tables import IdempotencyKey
from app.db.tables.base import core_table

RETENTION = timedelta(hours=24)
KEYS = core_table(IdempotencyKey)

# One round trip, whether the key is new or in use. An advisory lock, not the row's lock, detects a concurrent
# duplicate, which can then return its connection to the pool while it waits. An expired key counts as new.
RESERVE = text(
    """
    WITH lock AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(:lock) AS is_mine),
    taken AS (
      INSERT INTO idempotency_keys (project_id, key, method, path, fingerprint)
      SELECT :project_id, :key, :method, :path, :fingerprint FROM lock WHERE is_mine
      ON CONFLICT (project_id, key) DO UPDATE
      SET method = EXCLUDED.method, path = EXCLUDED.path, fingerprint = EXCLUDED.fingerprint,
          status = NULL, answer = NULL, created_at = clock_timestamp()
      WHERE idempotency_keys.created_at < clock_timestamp() - CAST(:kept AS interval)
      RETURNING 1
    )
    SELECT is_mine, EXISTS (SELECT FROM taken) AS is_new, k.method, k.path, k.fingerprint, k.status, k.answer
    FROM lock LEFT JOIN idempotency_keys k ON k.project_id = :project_id AND k.key = :key
      AND k.created_at >= clock_timestamp() - CAST(:kept AS interval)
    """
)
# Compiled once: compiling takes twice as long as sending it.
STORE_RESPONSE = update(KEYS).where(KEYS.c.project_id == bindparam("of_project"), KEYS.c.key == bindparam("of_key"))
FIND_RESPONSE = """
SELECT method, path, fingerprint, status, answer FROM idempotency_keys
WHERE project_id = %(project_id)s AND key = %(key)s AND created_at >= clock_timestamp() - %(kept)s
"""


@dataclass(frozen=True)
class KeyedRequest:
    """A request with an idempotency key; `fingerprint` is the SHA-256 of its body."""

    project_id: str
    key: str
    method: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class StoredResponse:
    """The first request with a key, and the response to it."""

    method: str
    path: str
    fingerprint: str
    status: int
    answer: str


class KeyInUseError(RuntimeError):
    """Another transaction that has not ended holds the key."""


def reserve_key(session: Session, request: KeyedRequest) -> StoredResponse | None:
    """Reserve the key for this transaction. Returns None, or the response stored for it. Raises KeyInUseError."""
    values = {"lock": _lock_number(request), "kept": RETENTION, **vars(request)}
    row = session.execute(RESERVE, values).one()
    if not row.is_mine:
        raise KeyInUseError(request.key)
    if row.is_new:
        return None
    if row.answer is None:  # the other transaction committed after this statement took its snapshot
        row = session.execute(select(KEYS).where(_matches(request))).one()
    return StoredResponse(row.method, row.path, row.fingerprint, row.status, row.answer)


async def find_response(connections: AsyncConnections, request: KeyedRequest) -> StoredResponse | None:
    """The committed response for the key, if there is one."""
    values = {"project_id": request.project_id, "key": request.key, "kept": RETENTION}
    row = await connections.fetch_one(FIND_RESPONSE, values)
    return None if row is None else StoredResponse(*row)


def store_response(session: Session, request: KeyedRequest, status: int, body: str) -> None:
    """Store the response of a request whose key this transaction has reserved."""
    values = {"status": status, "answer": body}
    session.execute(STORE_RESPONSE, {"of_project": request.project_id, "of_key": request.key, **values})


def release_key(session: Session, request: KeyedRequest) -> None:
    """Release a key that this transaction has reserved: the request created nothing."""
    session.execute(delete(KEYS).where(_matches(request)))


def delete_expired(session: Session, limit: int = 10_000) -> int:
    """Delete expired keys; the number of them."""
    expired = (
        select(IdempotencyKey.project_id, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.clock_timestamp() - RETENTION)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .subquery()
    )
    deleted = session.execute(
        delete(IdempotencyKey)
        .where(IdempotencyKey.project_id == expired.c.project_id, IdempotencyKey.key == expired.c.key)
        .returning(IdempotencyKey.key)
    )
    return len(deleted.all())


def _matches(request: KeyedRequest) -> ColumnElement[bool]:
    return and_(KEYS.c.project_id == request.project_id, KEYS.c.key == request.key)


def _lock_number(request: KeyedRequest) -> int:
    """The 64-bit number of the key's advisory lock; a collision of two keys only delays one of them."""
    digest = hashlib.sha256(f"idempotency\n{request.project_id}\n{request.key}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
