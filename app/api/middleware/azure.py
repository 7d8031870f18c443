"""Compatibility with Azure's client, which sends the same calls to /openai/... with an `api-key` header.

Path and header are translated before anything else reads the request, so that all rules for keys, projects and limits
apply unchanged. `api-version` in the query is ignored.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware.request_log import record_of

PREFIXES = ("/openai/v1/", "/openai/")  # Azure's newer and older path


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
