"""`Idempotency-Key`: a request that is sent again is answered again, and done once.

The key is taken first and the answer kept last in the one transaction that creates what was asked for: a crash leaves
both or neither. Only what was done is remembered: a request that was refused created nothing, and its cause may be
gone by the next try.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.db.access import idempotency
from app.db.access.idempotency import KeyedRequest, KeyInUseError, StoredResponse
from app.db.access.keys import PREFIX
from app.db.fast_reads.pool import AsyncConnections
from app.domain.error_text.json_text import as_json
from app.errors import IdempotencyKeyInUse, IdempotencyKeyReused

# An API key is kept as a hash and nowhere else: the copy of an answer that shows a new one does without it.
API_KEY = re.compile(rf'"{PREFIX}_[^"\\]*"')
REDACTED_KEY = '"shown once, in the first answer"'


class Replay(Exception):
    """The request was done before; this is what it was answered."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class IdempotentRequest:
    """One request's key; without one, everything here does nothing."""

    def __init__(self, project_id: str, key: str | None, method: str, path: str) -> None:
        self.project_id = project_id
        self.key = key
        self._call = (method, path)
        self._asked: KeyedRequest | None = None

    async def look(self, connections: AsyncConnections, fingerprint: str) -> None:
        """Returns if nothing is kept for the key. Raises Replay, and IdempotencyKeyReused as `begin` does."""
        if self.key is None:
            return
        asked = KeyedRequest(self.project_id, self.key, *self._call, fingerprint)
        earlier = await idempotency.find_response(connections, asked)
        if earlier is not None:
            raise _replay_or_conflict(asked, earlier)

    def begin(self, session: Session, fingerprint: str) -> None:
        """To be the first statement of the transaction that creates.

        Raises Replay; IdempotencyKeyReused for another request under the same key; IdempotencyKeyInUse while the first
        one has not ended.
        """
        if self.key is None:
            return
        asked = KeyedRequest(self.project_id, self.key, *self._call, fingerprint)
        try:
            earlier = idempotency.reserve_key(session, asked)
        except KeyInUseError as error:
            raise key_in_use_error(self.key) from error
        if earlier is not None:
            raise _replay_or_conflict(asked, earlier)
        self._asked = asked

    def end(self, session: Session, status: int, body: str) -> None:
        """To be the last statement of that transaction."""
        if self._asked is None:
            return
        if 200 <= status < 300:
            idempotency.store_response(session, self._asked, status, API_KEY.sub(REDACTED_KEY, body))
        else:
            idempotency.release_key(session, self._asked)


def fingerprint_of(value: Mapping[str, Any]) -> str:
    """Of what was asked for, not of how it was written down."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def key_in_use_error(key: str) -> IdempotencyKeyInUse:
    return IdempotencyKeyInUse(
        f"Idempotency-Key: the first request with {as_json(key)} has not ended yet; send it again in a second",
        "Idempotency-Key",
    )


def _replay_or_conflict(asked: KeyedRequest, earlier: StoredResponse) -> Replay | IdempotencyKeyReused:
    if (earlier.method, earlier.path, earlier.fingerprint) != (asked.method, asked.path, asked.fingerprint):
        return _reused(asked, earlier.method, earlier.path)
    return Replay(earlier.status, earlier.answer)


def _reused(asked: KeyedRequest, method: str, path: str) -> IdempotencyKeyReused:
    same_route = (method, path) == (asked.method, asked.path)
    seen = "another body" if same_route else f"{method} {path}"
    return IdempotencyKeyReused(
        f"Idempotency-Key: {as_json(asked.key)} was used within the last 24 hours for {seen}; send the same request "
        "again, or a new request with a new key",
        "Idempotency-Key",
    )
