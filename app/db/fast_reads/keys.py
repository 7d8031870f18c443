"""API keys by their secret: one query for every request. The polled read of a job contains it as a subquery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from app.db.fast_reads.pool import AsyncConnections
from app.domain.access.api_keys import hash_key

# Without the ORM, as every request runs it. `refusal` is why a known secret is not valid.
KEY_BY_SECRET = """
SELECT
  key.id AS key_id, key.project_id, key.scopes, project.max_requests_per_second,
  CASE
    WHEN key.revoked_at IS NOT NULL THEN 'revoked'
    WHEN key.expires_at <= clock_timestamp() THEN 'expired'
    WHEN key.secret_sha256 <> %(secret_sha256)s AND key.previous_expires_at <= clock_timestamp() THEN 'rotated'
    WHEN project.archived_at IS NOT NULL THEN 'archived'
  END AS refusal,
  key.last_used_at IS NULL OR key.last_used_at < clock_timestamp() - interval '1 minute' AS touch_due
FROM api_keys AS key JOIN projects AS project ON project.id = key.project_id
WHERE key.secret_sha256 = %(secret_sha256)s OR key.previous_secret_sha256 = %(secret_sha256)s
"""
# At most once a minute, so that polling does not write a row per request.
SET_LAST_USED = """
UPDATE api_keys SET last_used_at = clock_timestamp()
WHERE id = %(key_id)s AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')
RETURNING id
"""


class KeyRow(Protocol):
    """A row of KEY_BY_SECRET."""

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
    key: KeyRow | None = await fetch_with_key(connections, KEY_BY_SECRET, secret, {})
    return key


async def fetch_with_key(connections: AsyncConnections, query: str, secret: str, parameters: Mapping[str, str]) -> Any:
    """A KeyRow with the other columns of `query`. The search by hash makes its timing independent of the secret."""
    row = await connections.fetch_one(query, {"secret_sha256": hash_key(secret), **parameters})
    if row is not None and row.touch_due and row.refusal is None:
        await connections.fetch_one(SET_LAST_USED, {"key_id": row.key_id})
    return row
