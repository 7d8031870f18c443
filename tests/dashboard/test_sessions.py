"""Sessions end with their key, their time or a sign-out, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.requests import HTTPConnection

from app.web.api_client import ApiError
from app.web.sessions import COOKIE, PARALLEL_CHECKS, SessionStore, WebSession
from tests.dashboard.stub_api import stub_http

PROJECT = {"id": "proj_1", "name": "default", "api_key": {"id": "key_1", "scopes": []}}
NO_GZIP = {"headers": {"content-encoding": "gzip"}, "content": b"no gzip"}
Answers = Callable[[str], httpx2.Response]  # to GET /v1/project, by the key


def connection(session: WebSession) -> HTTPConnection:
    cookie = f"{COOKIE}={session.token}".encode()
    return HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})


async def signed_in(
    answer: Answers, count: int = 1, seconds: float = 60, on_end: Callable[[str], None] = lambda _: None
) -> tuple[SessionStore, list[WebSession], list[str]]:
    """The sessions of `count` keys, and the keys of the requests after the sign-in, which `answer` answers."""
    asked: list[str] = []
    is_signed_in = False

    def respond(request: httpx2.Request) -> httpx2.Response:
        if not is_signed_in:
            return httpx2.Response(200, json=PROJECT)
        asked.append(request.headers.get("authorization", "").removeprefix("Bearer "))
        return answer(asked[-1])

    store = SessionStore(stub_http(respond), stub_http(respond), seconds, on_end)
    sessions = [await store.sign_in(f"key {number}") for number in range(count)]
    is_signed_in = True
    return store, sessions, asked


def left_after_check(answer: Answers, count: int = 3) -> tuple[list[bool], list[str]]:
    """Which of the sessions are left after a check of their keys, and the checked keys."""

    async def check() -> tuple[list[bool], list[str]]:
        store, sessions, asked = await signed_in(answer, count)
        await store.check_all_keys()
        return [store.of(connection(one)) is not None for one in sessions], asked

    return asyncio.run(check())


def test_a_revoked_key_ends_its_session_alone() -> None:
    left, _ = left_after_check(lambda key: httpx2.Response(401 if key == "key 1" else 200, json=PROJECT))
    assert left == [True, False, True]


@pytest.mark.parametrize("response", [{"status_code": 503}, {"status_code": 200, **NO_GZIP}])
def test_an_unreachable_api_ends_no_session_and_delays_no_further_check(response: dict[str, Any]) -> None:
    left, asked = left_after_check(lambda _: httpx2.Response(**response), PARALLEL_CHECKS + 1)
    assert (all(left), len(asked)) == (True, PARALLEL_CHECKS)


def test_a_session_ends_after_its_time() -> None:
    async def expire() -> list[str]:
        reasons: list[str] = []
        ended: list[str] = []
        store, (session,), _ = await signed_in(lambda _: httpx2.Response(200), seconds=-1, on_end=ended.append)
        session.on_end.add(reasons.append)
        assert store.of(connection(session)) is None
        assert ended == [session.token]
        return reasons

    assert asyncio.run(expire()) == ["expired"]


def test_the_page_of_an_ended_session_has_no_key() -> None:
    async def end() -> list[str]:
        store, (session,), asked = await signed_in(lambda key: httpx2.Response(200 if key else 401, json=PROJECT))
        store.end(session.token, "signed-out")
        with pytest.raises(ApiError):
            await session.api.get("project")
        return asked

    assert asyncio.run(end()) == [""]
