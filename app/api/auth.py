"""Authentication and authorization: API key -> `Caller`.

The key is read by a query of its own in the event loop, so that no database connection is held while a client sends
its body. Scopes are checked here for every route, by method and path: a route needs no code of its own for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.api.dependencies import SessionDep, app_state_of
from app.api.middleware.request_log import record_of
from app.api.query_parameters import check_query
from app.db.access import audit
from app.db.fast_reads import keys as key_reads
from app.db.fast_reads.keys import KeyRow
from app.db.tables import Job
from app.domain.access import api_keys, scopes
from app.domain.error_text.json_text import as_json, counted
from app.errors import InvalidApiKey, MissingScope, RateLimited
from app.services.access.rate_limit import RateLimitStatus
from app.services.jobs import jobs

REFUSAL_MESSAGES = {
    "revoked": "This API key was revoked. Create a new one with `tunery keys create`.",
    "expired": "This API key has expired. An admin can create another key, or extend one that has not expired yet.",
    "rotated": "This is the previous secret of a rotated API key, and it is no longer valid. Use the new secret.",
    "archived": "The project of this API key is archived, so its keys are disabled. An admin can unarchive it.",
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
    """Find the key of the request and authorize the call. Raises what `authorize` and `bearer_secret` raise."""
    return authorize(request, await key_reads.find_key(app_state_of(request).connections, bearer_secret(request)))


AUTHENTICATED = Depends(authenticate)  # for routers whose handlers do not use the caller
CallerDep = Annotated[Caller, AUTHENTICATED]


def find_job(job_id: str, caller: CallerDep, session: SessionDep) -> Job:
    """The job of the path, which belongs to the caller's project. Raises NotFound."""
    return jobs.get(session, caller.project_id, job_id)


JobDep = Annotated[Job, Depends(find_job)]


def authorize(request: Request, key: KeyRow | None) -> Caller:
    """Check that `key` may make this call now, and count the call against the rate limit.

    Raises InvalidApiKey, RateLimited, MissingScope, and BadRequest for the query, in this order.
    """
    if key is None:
        raise invalid_key_error()
    record = record_of(request.scope)
    record.key_id, record.project_id = key.key_id, key.project_id
    if key.refusal is not None:
        raise InvalidApiKey(REFUSAL_MESSAGES[key.refusal])
    allowance = app_state_of(request).rate_limiter.take(key.project_id, key.max_requests_per_second)
    record.response_headers += _rate_limit_headers(allowance)
    if allowance.wait_seconds:
        raise RateLimited(
            f"Rate limit reached: this project may send {counted(allowance.limit, 'request')} a second. "
            f"Try again in {allowance.wait_seconds:.3f} s.",
            allowance.wait_seconds,
        )
    path = _route_path(request)
    _check_scope(key.scopes, scopes.required_scope(request.method, path), f"{request.method} {path}")
    check_query(request)
    _set_audit_actor(request, key, path)
    request.state.key_id = key.key_id  # for the limits that keys share fairly
    return Caller(key.key_id, key.project_id, tuple(key.scopes))


def bearer_secret(request: Request) -> str:
    """The key in the Authorization header. Raises InvalidApiKey when the header is absent or malformed."""
    header = request.headers.get("authorization", "").strip()
    scheme, _, secret = header.partition(" ")
    if _has_nested_bearer(header, secret):
        raise InvalidApiKey(
            "The value of the Authorization header repeats the name of the header or the word Bearer. Send "
            'Authorization: Bearer YOUR_KEY; if a shell variable holds the whole header, use it unchanged: -H "$KEY".'
        )
    if scheme.lower() != "bearer" or not secret.strip():
        raise InvalidApiKey(
            "You didn't provide an API key. Send it as a header: Authorization: Bearer YOUR_KEY "
            "(`tunery keys create` makes one)."
        )
    return secret.strip()


def _has_nested_bearer(header: str, secret: str) -> bool:
    """Whether the value holds a second header name or scheme, as when a shell variable already contains them."""
    return header.lower().startswith("authorization:") or secret.strip().lower().startswith(
        ("authorization:", "bearer ")
    )


def invalid_key_error() -> InvalidApiKey:
    """The error for an unknown key. It does not repeat the key, because clients log responses."""
    return InvalidApiKey(
        "Incorrect API key provided: this server has no such key. Create a key with `tunery keys create`."
    )


def _check_scope(key_scopes: Sequence[str], scope: str | None, call: str) -> None:
    if not scopes.allows(key_scopes, scope):
        has = ", ".join(map(as_json, key_scopes))
        raise MissingScope(
            f"Permission denied: {call} requires the scope {as_json(scope)}; this API key has {has}. "
            "An admin can give it another scope."
        )


def _set_audit_actor(request: Request, key: KeyRow, path: str) -> None:
    """Attribute all later changes of this request to `key` in the audit log."""
    act = audit.CURRENT_CONTEXT.get()
    if act is None or scopes.is_read_only(request.method, path):
        return
    act.action = api_keys.audit_action(request.method, path)
    act.actor_id = key.key_id
    act.project_id = request.path_params.get("project_id", key.project_id)
    act.object_ids = [str(value) for value in request.path_params.values()]


def _route_path(request: Request) -> str:
    """The path of the route, with parameter names in place of ids."""
    path: str | None = getattr(request.scope.get("route"), "path_format", None)
    return request.scope["path"] if path is None else path


def _rate_limit_headers(allowance: RateLimitStatus) -> list[tuple[bytes, bytes]]:
    """The headers that OpenAI sends, with a duration in OpenAI's format."""
    return [
        (b"x-ratelimit-limit-requests", b"%d" % allowance.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % allowance.remaining),
        (b"x-ratelimit-reset-requests", b"%dms" % math.ceil(allowance.reset_seconds * 1000)),
    ]
