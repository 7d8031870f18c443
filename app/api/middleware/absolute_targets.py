"""Requests in absolute form, `GET http://host/v1/models HTTP/1.1`, as clients send them to proxies.

A server must take them (RFC 9112, 3.2.2). uvicorn puts the whole target into `path`, so it is split here, before
anything else looks at the request; the host in the target counts, and the Host header does not.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class AbsoluteTargets:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = origin_form(scope)
        await self.app(scope, receive, send)


def origin_form(scope: Scope) -> Scope:
    """`scope` with a path that begins with a slash, if its target was absolute; else the same scope."""
    prefix = scope.get("root_path", "")
    found = ABSOLUTE.fullmatch((scope.get("raw_path") or b"").removeprefix(prefix.encode()))
    if found is None:
        return scope
    authority, raw_path = found.groups()
    host = authority.rpartition(b"@")[2]
    raw_path = raw_path or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": prefix + unquote(raw_path.decode("ascii")),
        "raw_path": prefix.encode() + raw_path,
        "headers": [(b"host", host), *headers],
    }
