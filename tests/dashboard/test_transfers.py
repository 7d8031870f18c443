"""Uploads of the browser: what is refused, how long the API is awaited, and how a check is repeated."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request

from app.web.api_client import RESPONSE_SECONDS
from app.web.dropped_tables import MAX_SESSION_BYTES, DroppedTableError, TableStore
from app.web.sessions import COOKIE, SessionStore
from app.web.transfers import NO_UPLOAD, REFUSALS, append, refuse, routes, send_piece
from tests.dashboard.stub_api import stub_client, stub_http

TWO_GIGABYTES = 2_000_000_000
CHECK_SECONDS = TWO_GIGABYTES / 50e6  # on a free core


def sent(offset: int, piece: bytes, total: int) -> httpx2.Request:
    """The request that carries the piece of an upload of `total` bytes."""
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, json={})

    async def send() -> None:
        await send_piece(stub_client(answer), {"id": "upload_1", "bytes": total}, offset, piece)

    asyncio.run(send())
    (request,) = requests
    return request


def test_the_last_piece_waits_for_the_check_of_all_lines() -> None:
    request = sent(TWO_GIGABYTES - 4, b"last", TWO_GIGABYTES)
    assert request.headers["content-range"] == f"bytes {TWO_GIGABYTES - 4}-{TWO_GIGABYTES - 1}/{TWO_GIGABYTES}"
    assert request.extensions["timeout"]["read"] > RESPONSE_SECONDS + 3 * CHECK_SECONDS
    assert sent(0, b"first", TWO_GIGABYTES).extensions["timeout"]["read"] == RESPONSE_SECONDS


@pytest.mark.parametrize("total", [0, TWO_GIGABYTES])
def test_without_a_further_byte_the_check_is_repeated(total: int) -> None:
    request = sent(total, b"", total)
    assert (request.method, request.url.path) == ("POST", "/v1/uploads/upload_1/complete")
    assert request.extensions["timeout"]["read"] >= RESPONSE_SECONDS + total / 10e6


def ask(*requests: tuple[str, str, Any], **headers: str) -> list[httpx2.Response]:
    """The dashboard's responses to (method, path, JSON body) of one session; the API is asked only at the sign-in."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/v1/project"
        return httpx2.Response(200, json={})

    async def send() -> list[httpx2.Response]:
        tables = TableStore(MAX_SESSION_BYTES)
        sessions = SessionStore(stub_http(answer), stub_http(answer), 60, tables.discard_of)
        app = FastAPI()
        app.state.sessions, app.state.tables = sessions, tables
        app.include_router(routes)
        for kind in REFUSALS:
            app.add_exception_handler(kind, refuse)
        cookies = {COOKIE: (await sessions.sign_in("key")).token}
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://dashboard", cookies=cookies) as client:
            responses = [await client.request(*each[:2], content=each[2], headers=headers) for each in requests]
        tables.close()
        return responses

    return asyncio.run(send())


SIZES = ("-1", "0", "-1000000000000000", "true", '"5"', "1.5", "NaN", "1e400", "null", "[]")
BODIES = ('{"filename": "a.csv"}', '{"bytes": 5}', '{"filename": 5, "bytes": 5}', "[1]", "5", "", "{", "[" * 60_000)


def test_a_size_that_is_none_is_refused_and_lifts_no_limit() -> None:
    bodies = [*(f'{{"filename": "a.csv", "bytes": {size}}}' for size in SIZES), *BODIES]
    largest = f'{{"filename": "a.csv", "bytes": {MAX_SESSION_BYTES}}}'
    first, *refused, last = ask(*(("POST", "/uploads", body) for body in (largest, *bodies, largest)))
    assert (first.status_code, last.status_code) == (200, 400)
    assert {(answer.status_code, answer.json()["message"]) for answer in refused} == {(400, NO_UPLOAD)}


def test_an_upload_of_another_site_is_refused() -> None:
    (response,) = ask(("POST", "/uploads", '{"filename": "a.csv", "bytes": 3}'), origin="https://evil.test")
    assert response.status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", "/uploads/x%3fy", "upload_id"),
        ("DELETE", "/uploads/x%20y", "upload_id"),
        ("PUT", "/uploads/upload_1/content?offset=x", "offset"),
        ("GET", "/files/x%3fy/content", "file_id"),
        ("GET", "/jobs/ftjob-1/log.txt?attempt=x", "attempt"),
    ],
)
def test_an_invalid_parameter_is_refused_without_the_api(method: str, path: str, param: str) -> None:
    (response,) = ask((method, path, b""))
    assert (response.status_code, response.json()["message"].split(": ")[0]) == (400, param)


def test_a_table_that_expires_while_a_piece_arrives_is_refused() -> None:
    app = FastAPI()
    app.state.tables = tables = TableStore()
    table = tables.create("session", "a.csv", 10)
    session: Any = SimpleNamespace(token=table.owner)

    async def receive() -> dict[str, Any]:
        tables.discard(table)
        return {"type": "http.request", "body": b"a,b"}

    with pytest.raises(DroppedTableError):
        asyncio.run(append(session, Request({"type": "http", "app": app}, receive), table.id, 0))
    tables.close()
