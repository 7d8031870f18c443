"""A gateway in front of an engine that has no log-probabilities of prompts, or only chats, as many hosted ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.serving import serve

REFUSED = "prompt_logprobs"


@contextmanager
def gateway(upstream: str, *, is_chat_only: bool = False) -> Iterator[str]:
    """The address of a gateway to `upstream`, until the block ends."""

    async def forward(request: Request) -> Response:
        body = await request.body()
        if body and REFUSED in json.loads(body):
            error = {"message": f"{REFUSED} is not supported", "type": "invalid_request_error"}
            return JSONResponse({"error": error}, status_code=400)
        if is_chat_only and request.url.path == "/v1/completions":
            return JSONResponse({"error": {"message": "only chats"}}, status_code=404)
        async with httpx2.AsyncClient(timeout=300) as client:
            headers = {"content-type": "application/json"}
            response = await client.request(request.method, upstream + request.url.path, content=body, headers=headers)
        return Response(response.content, response.status_code, media_type="application/json")

    app = Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])
    with serve(app) as server:  # type: ignore[arg-type]
        yield server.root
