"""HEAD for whatever has GET (RFC 9110, 9.3.2): the same endpoint and the same headers, without the body.

The OpenAPI document does not list it: clients made from it would have each reading call twice.
"""

from __future__ import annotations

import copy

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def head_routes(router: APIRouter) -> APIRouter:
    """A HEAD route beside each GET route of `router`, which itself stays as it is."""
    heads = APIRouter()
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            head = copy.copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            heads.routes.append(head)
    return heads


class HeadWithoutBody:
    """Plain ASGI: drops the body of the answer to a HEAD request, whichever route, error or middleware made it.

    An error goes without Content-Length, too: its message may name the method, and the length has to be that of GET's.
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
