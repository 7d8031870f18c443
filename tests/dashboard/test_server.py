"""What the dashboard's server does with every response."""

from __future__ import annotations

import asyncio

import httpx2
import nicegui
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.web.server import CompressOnceMiddleware, SecurityHeadersMiddleware

FILE = f"/_nicegui/{nicegui.__version__}/static/vue.js"


class Files:
    """An application that counts the requests that reach it."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = Request(scope).url.path
        self.paths.append(path)
        status = 404 if "missing" in path else 200
        await PlainTextResponse(f"content of {path} " * 1_000, status)(scope, receive, send)


def get(files: Files, path: str, times: int = 2, **headers: str) -> list[httpx2.Response]:
    """Send the same request several times."""

    async def send() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(CompressOnceMiddleware(files))
        async with httpx2.AsyncClient(transport=transport, base_url="http://dashboard") as client:
            return [await client.get(path, headers=headers) for _ in range(times)]

    return asyncio.run(send())


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
        transport = httpx2.ASGITransport(SecurityHeadersMiddleware(Files()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://dashboard") as client:
            return await client.get("/jobs", headers={"Host": host})

    policy = asyncio.run(send()).headers["content-security-policy"]
    assert f"connect-src {sources};" in policy
    assert policy.count("script-src") == 1


def test_a_file_of_a_version_is_compressed_once_for_all_browsers() -> None:
    files = Files()
    first, second = get(files, FILE)
    assert files.paths == [FILE]
    assert first.headers["content-encoding"] == second.headers["content-encoding"] == "gzip"
    assert first.text == second.text == f"content of {FILE} " * 1_000


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/jobs", {}),
        (f"/_nicegui/{nicegui.__version__}/dynamic_resources/codehilite", {}),
        (f"/_nicegui/{nicegui.__version__}/missing.js", {}),
        (FILE, {"Range": "bytes=0-9"}),
        (FILE, {"If-None-Match": '"1"'}),
        (FILE, {"Accept-Encoding": "identity"}),
    ],
)
def test_any_other_response_is_made_for_its_request(path: str, headers: dict[str, str]) -> None:
    files = Files()
    get(files, path, **headers)
    assert files.paths == [path, path]
