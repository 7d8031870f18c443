"""Idempotency keys: a repeated request gets the stored response of the first one and has no second effect.

The transaction that creates the requested object reserves the key first and stores the response last, so that a crash
leaves both or neither. Only successful responses are stored: a refused request created nothing, and the cause of the
refusal may not exist at the next attempt. app.api.idempotency connects this to HTTP.
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
from app.db.fast_reads.pool import AsyncConnections
from app.domain.access.api_keys import PREFIX
from app.domain.error_text.json_text import as_json
from app.domain.webhooks import SECRET_PREFIX
from app.errors import IdempotencyKeyInUse, IdempotencyKeyReused

# API keys are stored only as hashes, and signing secrets encrypted: stored responses contain neither.
SECRET = re.compile(rf'"(?:{PREFIX}_[^"\\]*|{SECRET_PREFIX}[A-Za-z0-9+/=]{{32,}})"')
REDACTED_SECRET = '"shown once, in the first answer; a rotation gives a new one"'


class Replay(Exception):
    """The request was completed before; this is the stored response."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class IdempotentRequest:
    """A request with its idempotency key; without a key, the methods do nothing."""

    def __init__(self, project_id: str, key: str | None, method: str, path: str) -> None:
        self.project_id = project_id
        self.key = key
        self._method = method
        self._path = path
        self._reserved: KeyedRequest | None = None

    async def check_stored_response(self, connections: AsyncConnections, fingerprint: str) -> None:
        """Raises Replay if a response is stored for the key, IdempotencyKeyReused if it is that of another request."""
        if self.key is None:
            return
        request = KeyedRequest(self.project_id, self.key, self._method, self._path, fingerprint)
        stored = await idempotency.find_response(connections, request)
        if stored is not None:
            raise _replay_or_conflict(request, stored)

    def reserve(self, session: Session, fingerprint: str) -> None:
        """Reserve the key: to be the first statement of the transaction that creates the object.

        Raises Replay; IdempotencyKeyReused for another request with the same key; IdempotencyKeyInUse while the first
        request has not ended.
        """
        if self.key is None:
            return
        request = KeyedRequest(self.project_id, self.key, self._method, self._path, fingerprint)
        try:
            stored = idempotency.reserve_key(session, request)
        except KeyInUseError as error:
            raise key_in_use_error(self.key) from error
        if stored is not None:
            raise _replay_or_conflict(request, stored)
        self._reserved = request

    def store_response(self, session: Session, status: int, body: str) -> None:
        """Store a successful response, else release the key: to be the last statement of that transaction."""
        if self._reserved is None:
            return
        if 200 <= status < 300:
            idempotency.store_response(session, self._reserved, status, SECRET.sub(REDACTED_SECRET, body))
        else:
            idempotency.release_key(session, self._reserved)


def fingerprint_of(value: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a request, independent of its serialization."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def key_in_use_error(key: str) -> IdempotencyKeyInUse:
    return IdempotencyKeyInUse(
        f"Idempotency-Key: the first request with {as_json(key)} has not ended yet; send it again in a second",
        "Idempotency-Key",
    )


def _replay_or_conflict(request: KeyedRequest, stored: StoredResponse) -> Replay | IdempotencyKeyReused:
    if (stored.method, stored.path, stored.fingerprint) != (request.method, request.path, request.fingerprint):
        return _reused(request, stored.method, stored.path)
    return Replay(stored.status, stored.answer)


def _reused(request: KeyedRequest, method: str, path: str) -> IdempotencyKeyReused:
    same_route = (method, path) == (request.method, request.path)
    first_request = "another body" if same_route else f"{method} {path}"
    return IdempotencyKeyReused(
        f"Idempotency-Key: {as_json(request.key)} was used within the last 24 hours for {first_request}; send the same "
        "request again, or a new request with a new key",
        "Idempotency-Key",
    )
