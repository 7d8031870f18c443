"""Keys of requests that must not be done twice. Taken and answered in the transaction of what the request creates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, bindparam, delete, func, select, text, update
from sqlalchemy.orm import Session

from app.db.base import core_table
from app.db.fast_reads.pool import AsyncConnections
from app.db.tables import IdempotencyKey

RETENTION = timedelta(hours=24)
KEYS = core_table(IdempotencyKey)

# One round trip, whether the key is new or in use. An advisory lock and not the row's own tells that a twin is at work:
# who asked can then give its connection back and wait without one. A key whose time is over is new.
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
# Put together once, which takes twice as long as sending it.
STORE_RESPONSE = update(KEYS).where(KEYS.c.project_id == bindparam("of_project"), KEYS.c.key == bindparam("of_key"))
FIND_RESPONSE = """
SELECT method, path, fingerprint, status, answer FROM idempotency_keys
WHERE project_id = %(project_id)s AND key = %(key)s AND created_at >= clock_timestamp() - %(kept)s
"""


@dataclass(frozen=True)
class KeyedRequest:
    """What a request with a key asks for; `fingerprint` stands for its body."""

    project_id: str
    key: str
    method: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class StoredResponse:
    """What the first request with a key asked for, and was answered."""

    method: str
    path: str
    fingerprint: str
    status: int
    answer: str


class KeyInUseError(RuntimeError):
    """Another transaction holds the key and has not ended."""


def reserve_key(session: Session, asked: KeyedRequest) -> StoredResponse | None:
    """None when the key is this transaction's now; else what became of it before. Raises InUseError."""
    values = {"lock": _lock_number(asked), "kept": RETENTION, **vars(asked)}
    found = session.execute(RESERVE, values).one()
    if not found.is_mine:
        raise KeyInUseError(asked.key)
    if found.is_new:
        return None
    if found.answer is None:  # it was answered while the statement ran, which sees what was there when it began
        found = session.execute(select(KEYS).where(_matches(asked))).one()
    return StoredResponse(found.method, found.path, found.fingerprint, found.status, found.answer)


async def find_response(connections: AsyncConnections, asked: KeyedRequest) -> StoredResponse | None:
    """What became of the key, if a transaction that took it has committed."""
    values = {"project_id": asked.project_id, "key": asked.key, "kept": RETENTION}
    found = await connections.fetch_one(FIND_RESPONSE, values)
    return None if found is None else StoredResponse(*found)


def store_response(session: Session, asked: KeyedRequest, status: int, body: str) -> None:
    """Remember the answer of a request whose key this transaction has taken."""
    values = {"status": status, "answer": body}
    session.execute(STORE_RESPONSE, {"of_project": asked.project_id, "of_key": asked.key, **values})


def release_key(session: Session, asked: KeyedRequest) -> None:
    """Nothing was created after all: the key is free again."""
    session.execute(delete(KEYS).where(_matches(asked)))


def delete_expired(session: Session, limit: int = 10_000) -> int:
    """Delete keys whose time is over; how many."""
    old = (
        select(IdempotencyKey.project_id, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.clock_timestamp() - RETENTION)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .subquery()
    )
    found = session.execute(
        delete(IdempotencyKey)
        .where(IdempotencyKey.project_id == old.c.project_id, IdempotencyKey.key == old.c.key)
        .returning(IdempotencyKey.key)
    )
    return len(found.all())


def _matches(asked: KeyedRequest) -> ColumnElement[bool]:
    return and_(KEYS.c.project_id == asked.project_id, KEYS.c.key == asked.key)


def _lock_number(asked: KeyedRequest) -> int:
    """64 bits: two keys that share a lock by chance wait for each other once, no more."""
    digest = hashlib.sha256(f"idempotency\n{asked.project_id}\n{asked.key}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
