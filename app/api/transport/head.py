"""HEAD for every GET route (RFC 9110, 9.3.2): the same endpoint and the same headers, without the body.

The OpenAPI document does not list HEAD: generated clients would have every read call twice.
"""

from __future__ import annotations

import copy

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def head_routes(router: APIRouter) -> list[APIRoute]:
    """A HEAD route for each GET route of `router`."""
    heads = []
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            head = copy.copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            heads.append(head)
    return heads


class HeadResponseMiddleware:
    """Plain ASGI middleware: drops the body of the response to a HEAD request, including error responses.

    An error response has no Content-Length either: its message may name the method, so its length may differ from GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["body"] = b""
            elif message["type"] == "http.response.start" and message["status"] >= 400:
                message["headers"] = [(name, value) for name, value in message["headers"] if name != b"content-length"]
            await send(message)

        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self.app(scope, receive, without_body if is_head else send)
