"""Requests of clients that send other targets: in absolute form, `GET http://host/v1/models HTTP/1.1`, as clients
send them to proxies, and those of Azure's client, which sends the same calls to /openai/... with an `api-key` header.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware.request_log import record_of

ABSOLUTE_TARGET = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
PREFIXES = ("/openai/v1/", "/openai/")  # Azure's newer and older path


class AbsoluteTargetMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = origin_form(scope)
        await self.app(scope, receive, send)


def origin_form(scope: Scope) -> Scope:
    """A scope whose path begins with a slash, if its target was absolute; else the same scope."""
    prefix = scope.get("root_path", "")
    target = ABSOLUTE_TARGET.fullmatch((scope.get("raw_path") or b"").removeprefix(prefix.encode()))
    if target is None:
        return scope
    authority, raw_path = target.groups()
    host = authority.rpartition(b"@")[2]
    raw_path = raw_path or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": prefix + unquote(raw_path.decode("ascii")),
        "raw_path": prefix.encode() + raw_path,
        "headers": [(b"host", host), *headers],
    }


class AzureCompatibilityMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, **_path(scope), "headers": _headers(scope["headers"])}
        try:
            await self.app(scope, receive, send)
        finally:
            if record := record_of(scope):  # the router sets the route in this copy of the scope only
                record.route = getattr(scope.get("route"), "path_format", None)


def _path(scope: Scope) -> dict[str, str]:
    prefix = next((prefix for prefix in PREFIXES if scope["path"].startswith(prefix)), None)
    return {} if prefix is None else {"path": f"/v1/{scope['path'].removeprefix(prefix)}"}


def _headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Convert an `api-key` header to an Authorization header, unless the request already has one."""
    if any(name == b"authorization" for name, _ in headers):
        return headers
    return [*headers, *((b"authorization", b"Bearer " + value) for name, value in headers if name == b"api-key")]
