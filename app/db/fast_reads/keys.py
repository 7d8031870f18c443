"""API keys by their secret: one query for all requests that wait for theirs. The polled read of a job contains it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

from sqlalchemy import ARRAY, Executable, Text, and_, bindparam, case, func, or_, select, true, update

from app.db.fast_reads.pool import AsyncConnections
from app.db.tables import ApiKey, Project
from app.domain.access.api_keys import hash_key

ASKED_COLUMNS = ("secret_sha256", "job_id")
ASKED = (
    func.unnest(*(bindparam(name, type_=ARRAY(Text)) for name in ASKED_COLUMNS))
    .table_valued(*ASKED_COLUMNS, with_ordinality="number", name="asked")
    .render_derived()
)
HASH = ASKED.c.secret_sha256
NOW = func.clock_timestamp()
IS_TOUCH_DUE = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < NOW - timedelta(minutes=1))
# `refusal` is why a known secret is not valid.
KEY = (
    select(
        ApiKey.id.label("key_id"),
        ApiKey.project_id,
        ApiKey.scopes,
        Project.max_requests_per_second,
        case(
            (ApiKey.revoked_at.is_not(None), "revoked"),
            (ApiKey.expires_at <= NOW, "expired"),
            (and_(ApiKey.secret_sha256 != HASH, ApiKey.previous_expires_at <= NOW), "rotated"),
            (Project.archived_at.is_not(None), "archived"),
        ).label("refusal"),
        IS_TOUCH_DUE.label("touch_due"),
    )
    .join(Project, Project.id == ApiKey.project_id)
    .where(or_(ApiKey.secret_sha256 == HASH, ApiKey.previous_secret_sha256 == HASH))
    .lateral("key")
)
OF_KEY = ASKED.join(KEY, true())
FIND_KEY = select(ASKED.c.number, *KEY.c).select_from(OF_KEY)
# At most once a minute, so that polling does not write a row per request.
SET_LAST_USED = (
    update(ApiKey).where(ApiKey.id == bindparam("key_id"), IS_TOUCH_DUE).values(last_used_at=NOW).returning(ApiKey.id)
)


class KeyRow(Protocol):
    """A row of KEY."""

    @property
    def key_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str]: ...
    @property
    def max_requests_per_second(self) -> int | None: ...
    @property
    def refusal(self) -> str | None: ...
    @property
    def touch_due(self) -> bool: ...


async def find_key(connections: AsyncConnections, secret: str) -> KeyRow | None:
    """The key that has, or had, this secret; None for an unknown secret."""
    key: KeyRow | None = await fetch_with_key(connections, FIND_KEY, secret)
    return key


async def fetch_with_key(connections: AsyncConnections, query: Executable, secret: str, job_id: str = "") -> Any:
    """A KeyRow with the other columns of `query`. The search by hash makes its timing independent of the secret."""
    row = await connections.fetch_batched(query, {"secret_sha256": hash_key(secret), "job_id": job_id})
    touched = connections.touched_keys
    if row is not None and row.touch_due and row.refusal is None and row.key_id not in touched:
        touched.add(row.key_id)
        try:
            await connections.fetch_one(SET_LAST_USED, {"key_id": row.key_id})
        finally:
            touched.remove(row.key_id)
    return row
