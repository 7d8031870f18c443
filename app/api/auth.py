"""Bearer key -> caller. A query of its own, in the event loop: no connection is held while a client sends its body.

What a caller may is decided here for every route, by method and path: a route needs no code of its own for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.api.dependencies import engines_of
from app.api.middleware.request_context import tell_with_answer
from app.api.middleware.request_log import record_of
from app.api.query_parameters import check_query
from app.db.access import audit
from app.db.fast_reads import keys as key_reads
from app.db.fast_reads.keys import KeyRow
from app.domain.access import audit_actions, scopes
from app.errors import InvalidApiKey, MissingScope, RateLimited
from app.services.access.rate_limit import RateLimitStatus

REFUSALS = {
    "revoked": "This API key was revoked. `tunery keys create` makes a new one.",
    "expired": "This API key has expired. An admin can create another, or move the expiry of one that still lives.",
    "rotated": "This is the old secret of an API key that was rotated, and its time is over. Use the new one.",
    "archived": "The project of this API key is archived: its keys open nothing any more.",
}


@dataclass(frozen=True)
class Caller:
    key_id: str
    project_id: str
    scopes: tuple[str, ...] = (scopes.ALL,)

    @property
    def is_admin(self) -> bool:
        return scopes.ADMIN in self.scopes


async def authenticate(request: Request) -> Caller:
    return admit(request, await key_reads.find_key(engines_of(request).connections, bearer_secret(request)))


AUTHENTICATED = Depends(authenticate)  # for a router whose routes need not know who calls
CallerDep = Annotated[Caller, AUTHENTICATED]


def admit(request: Request, key: KeyRow | None) -> Caller:
    """Whoever has this key may make this call, now.

    Raises InvalidApiKey, RateLimited, MissingScope, and BadRequest for the query, in this order.
    """
    if key is None:
        raise wrong_key()
    if record := record_of(request.scope):
        record.key_id, record.project_id = key.key_id, key.project_id
    if key.refusal is not None:
        raise InvalidApiKey(REFUSALS[key.refusal])
    allowance = engines_of(request).limiter.take(key.project_id, key.max_requests_per_second)
    tell_with_answer(request.scope, _rate_headers(allowance))
    if allowance.wait_seconds:
        raise RateLimited(
            f"Rate limit reached: this project may send {allowance.limit} requests a second. "
            f"Try again in {allowance.wait_seconds:.3f} s.",
            allowance.wait_seconds,
        )
    path = _template(request)
    _check_scope(key.scopes, scopes.needed(request.method, path), f"{request.method} {path}")
    check_query(request)
    _attribute(request, key, path)
    request.state.key_id = key.key_id  # for limits that keys share fairly
    return Caller(key.key_id, key.project_id, tuple(key.scopes))


def bearer_secret(request: Request) -> str:
    """Raises InvalidApiKey when there is no key in the request."""
    header = request.headers.get("authorization", "").strip()
    scheme, _, secret = header.partition(" ")
    if _is_a_header_in_a_header(header, secret):
        raise InvalidApiKey(
            "The value of the Authorization header begins with its own name, or says Bearer twice. Send "
            'Authorization: Bearer YOUR_KEY; a shell variable that holds the whole header is used as it is, -H "$KEY".'
        )
    if scheme.lower() != "bearer" or not secret.strip():
        raise InvalidApiKey(
            "You didn't provide an API key. Send it as a header: Authorization: Bearer YOUR_KEY "
            "(`tunery keys create` makes one)."
        )
    return secret.strip()


def _is_a_header_in_a_header(header: str, secret: str) -> bool:
    """Of a shell variable that holds more, or less, than where it is used takes it for."""
    return header.lower().startswith("authorization:") or secret.strip().lower().startswith(
        ("authorization:", "bearer ")
    )


def wrong_key() -> InvalidApiKey:
    """The key itself is not repeated: answers end up in logs."""
    return InvalidApiKey("Incorrect API key provided: nobody issued it here. `tunery keys create` makes a new one.")


def _check_scope(has: Sequence[str], scope: str | None, call: str) -> None:
    if not scopes.allow(has, scope):
        raise MissingScope(
            f"This API key may not do {call}: that takes the scope {scope!r}, and the key has {', '.join(has)}. "
            "An admin can give it another scope."
        )


def _attribute(request: Request, key: KeyRow, path: str) -> None:
    """From here on, what this request changes is this key's doing."""
    act = audit.CURRENT_CONTEXT.get()
    if act is None or scopes.reads_only(request.method, path):
        return
    act.action = audit_actions.name_of(request.method, path)
    act.actor_id = key.key_id
    act.project_id = request.path_params.get("project_id", key.project_id)
    act.object_ids = [str(value) for value in request.path_params.values()]


def _template(request: Request) -> str:
    """The path of the route, with names in place of ids."""
    path: str | None = getattr(request.scope.get("route"), "path_format", None)
    return request.scope["path"] if path is None else path


def _rate_headers(allowance: RateLimitStatus) -> Mapping[str, str]:
    """OpenAI's names; a duration is written as they write it."""
    return {
        "x-ratelimit-limit-requests": str(allowance.limit),
        "x-ratelimit-remaining-requests": str(allowance.remaining),
        "x-ratelimit-reset-requests": f"{math.ceil(allowance.reset_seconds * 1000)}ms",
    }
