"""What the dashboard's server does with every response."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.web.server import SecurityHeadersMiddleware


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("content")(scope, receive, send)


@pytest.mark.parametrize(
    ("host", "sources"),
    [
        ("tunery.example.com:8443", "'self' ws://tunery.example.com:8443 wss://tunery.example.com:8443"),
        ("[::1]:8001", "'self' ws://[::1]:8001 wss://[::1]:8001"),
        ("a; script-src *", "'self'"),
    ],
)
def test_a_page_connects_to_its_own_host_alone(host: str, sources: str) -> None:
    async def send() -> httpx2.Response:
        transport = httpx2.ASGITransport(SecurityHeadersMiddleware(answer))
        async with httpx2.AsyncClient(transport=transport, base_url="http://dashboard") as client:
            return await client.get("/jobs", headers={"Host": host})

    policy = asyncio.run(send()).headers["content-security-policy"]
    assert f"connect-src {sources};" in policy
    assert policy.count("script-src") == 1
