"""Requests in absolute form, `GET http://host/v1/models HTTP/1.1`, as clients send them to proxies.

A server must accept them (RFC 9112, 3.2.2). uvicorn puts the whole target into `path`, so this middleware splits it
before anything else reads the request. The host of the target replaces the Host header.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

ABSOLUTE_TARGET = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


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
