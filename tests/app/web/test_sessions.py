"""Sessions end with their key, their time or a sign-out, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from starlette.requests import HTTPConnection

from app.web.api_client import ApiError
from app.web.sessions import COOKIE, SessionStore, WebSession
from tests.app.web.stub_api import stub_http

PROJECT = {"id": "proj_1", "name": "default", "api_key": {"id": "key_1", "scopes": []}}
Answer = Callable[[str], httpx2.Response]  # by the key


class Api:
    """Answers GET /v1/project; `answer` can be replaced in a test."""

    def __init__(self) -> None:
        self.answer: Answer = lambda _: httpx2.Response(200, json=PROJECT)
        self.asked: list[str] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.asked.append(key)
        return self.answer(key)


def with_sessions(
    work: Callable[[SessionStore, Api, list[WebSession]], Awaitable[None]], count: int = 1, seconds: float = 60
) -> list[str]:
    """Run `work` with the signed-in sessions of `count` keys; returns the tokens of those that ended."""
    ended: list[str] = []

    async def run() -> None:
        api = Api()
        http = stub_http(api)
        store = SessionStore(http, http, seconds, ended.append)
        sessions = [await store.sign_in(f"key {number}") for number in range(count)]
        api.asked.clear()
        await work(store, api, sessions)

    asyncio.run(run())
    return ended


def connection(session: WebSession) -> HTTPConnection:
    cookie = f"{COOKIE}={session.token}".encode()
    return HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})


def test_a_revoked_key_ends_its_session_alone() -> None:
    async def work(store: SessionStore, api: Api, sessions: list[WebSession]) -> None:
        api.answer = lambda key: httpx2.Response(401 if key == "key 1" else 200, json=PROJECT)
        await store.check_all_keys()
        assert [store.of(connection(one)) is not None for one in sessions] == [True, False, True]

    assert len(with_sessions(work, count=3)) == 1


def test_an_unreachable_api_ends_no_session_and_delays_no_further_check() -> None:
    async def work(store: SessionStore, api: Api, sessions: list[WebSession]) -> None:
        api.answer = lambda _: httpx2.Response(503)
        await store.check_all_keys()
        assert len(api.asked) == 1

    assert with_sessions(work, count=2) == []


def test_a_response_that_cannot_be_decoded_is_an_error_of_the_connection() -> None:
    async def work(store: SessionStore, api: Api, sessions: list[WebSession]) -> None:
        api.answer = lambda _: httpx2.Response(200, headers={"content-encoding": "gzip"}, content=b"no gzip")
        await store.check_all_keys()
        assert store.of(connection(sessions[0])) is not None

    assert with_sessions(work) == []


def test_a_session_ends_after_its_time() -> None:
    async def work(store: SessionStore, api: Api, sessions: list[WebSession]) -> None:
        reasons: list[str] = []
        sessions[0].on_end.add(reasons.append)
        assert store.of(connection(sessions[0])) is None
        assert reasons == ["expired"]

    assert len(with_sessions(work, seconds=-1)) == 1


def test_the_page_of_an_ended_session_has_no_key() -> None:
    async def work(store: SessionStore, api: Api, sessions: list[WebSession]) -> None:
        api.answer = lambda key: httpx2.Response(200 if key else 401, json=PROJECT)
        store.end(sessions[0].token, "signed-out")
        with pytest.raises(ApiError):
            await sessions[0].api.get("project")
        assert api.asked == [""]

    assert len(with_sessions(work)) == 1
