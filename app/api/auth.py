"""Bearer key -> caller. In a transaction of its own: no connection is held while a client sends its body."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request

from app.api.deps import EnginesDep
from app.db import keys
from app.db.engine import transaction
from app.db.tables import ApiKey
from app.errors import InvalidApiKey

TOUCH_AFTER = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    key_id: str
    project_id: str
    is_admin: bool


def authenticate(request: Request, engines: EnginesDep) -> Caller:
    secret = bearer_secret(request)
    with transaction(engines.sessions) as session:
        key = keys.find(session, secret)
        if key is None:
            raise wrong_key()
        if _touch_is_due(key):
            keys.touch(session, key)
        return Caller(key.id, key.project_id, key.is_admin)


CallerDep = Annotated[Caller, Depends(authenticate)]


def bearer_secret(request: Request) -> str:
    """Raises InvalidApiKey when there is no key in the request."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise InvalidApiKey(
            "You didn't provide an API key. Send it as a header: Authorization: Bearer YOUR_KEY "
            "(`tunery keys create` makes one)."
        )
    return secret.strip()


def wrong_key() -> InvalidApiKey:
    """The key itself is not repeated: answers end up in logs."""
    return InvalidApiKey(
        "Incorrect API key provided: it is unknown or was revoked. `tunery keys create` makes a new one."
    )


def _touch_is_due(key: ApiKey) -> bool:
    """By our own clock, to save a query; the UPDATE asks the database's."""
    return key.last_used_at is None or key.last_used_at < datetime.now(UTC) - TOUCH_AFTER
