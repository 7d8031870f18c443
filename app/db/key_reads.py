"""Who sends this secret? One query, for every request; the polled job read has it inside a query of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy.orm import Session

from app.db.keys import hash_key

# Without an ORM, as it runs before everything else. `refusal` says why a secret that we know opens nothing.
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
# At most once a minute: polling must not write a row per request.
TOUCH = """
UPDATE api_keys SET last_used_at = clock_timestamp()
WHERE id = %(key_id)s AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')
RETURNING id
"""


class KnownKey(Protocol):
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


def find(session: Session, secret: str) -> KnownKey | None:
    """The key that has, or had, this secret. The look-up is by hash, so its timing tells nothing of the secret."""
    values = {"secret_sha256": hash_key(secret)}
    return session.connection().exec_driver_sql(KEY_BY_SECRET, values).one_or_none()


def touch(session: Session, key_id: str) -> None:
    session.connection().exec_driver_sql(TOUCH, {"key_id": key_id})
