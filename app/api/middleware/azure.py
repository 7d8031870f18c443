"""Scripts for Azure: its client asks for /openai/... with an `api-key` header, for the very same calls.

Only the outermost names differ, so they are translated before anything else looks at a request: every rule about keys,
projects and limits is then the one that everybody has. `api-version` in the query is for Azure's own history.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware.request_log import record_of

PREFIXES = ("/openai/v1/", "/openai/")  # its newer and its older address


class AzureNames:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, **_path(scope), "headers": _headers(scope["headers"])}
        try:
            await self.app(scope, receive, send)
        finally:
            if record := record_of(scope):  # the router fills in this copy of the scope only
                record.route = getattr(scope.get("route"), "path_format", None)


def _path(scope: Scope) -> dict[str, str]:
    prefix = next((prefix for prefix in PREFIXES if scope["path"].startswith(prefix)), None)
    return {} if prefix is None else {"path": f"/v1/{scope['path'].removeprefix(prefix)}"}


def _headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Azure's key header, as everybody else's; one that is given in both ways is the Authorization header's."""
    if any(name == b"authorization" for name, _ in headers):
        return headers
    return [*headers, *((b"authorization", b"Bearer " + value) for name, value in headers if name == b"api-key")]
