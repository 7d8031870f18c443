"""Around every request: its id, its time, its log context, who acts in it, and a JSON answer to what nobody handled.

Outermost of our middlewares, and plain ASGI: bodies stream through it untouched.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.error_handlers import error_response
from app.db.audit import Act, acting
from app.errors import BadRequest, NotFound, TuneryError
from app.log import get_logger

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
API_VERSION = b"2020-10-01"  # what OpenAI sends as `openai-version`

log = get_logger(__name__)


class Envelope:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        answer = _Answer(send, request_id, _told(scope))
        structlog.contextvars.bind_contextvars(request_id=request_id.decode())
        try:
            with acting(Act(request_id=request_id.decode(), address=_address(scope))):
                await self._answer(scope, receive, answer)
        finally:
            structlog.contextvars.unbind_contextvars("request_id")

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if problem := _unprintable(scope):
            await error_response(problem)(scope, receive, answer)
            return
        try:
            await self.app(scope, receive, answer)
        except ClientDisconnect:
            log.info("client left before the end of its request", path=scope["path"])
        except Exception:
            log.exception("request failed", method=scope["method"], path=scope["path"])
            if answer.started:
                raise  # too late for another status; the server cuts the connection
            await error_response(TuneryError("Something went wrong on our side; the log has the details."))(
                scope, receive, answer
            )


def tell_with_answer(scope: Scope, headers: Mapping[str, str]) -> None:
    """Headers for whatever this request is answered with, an error included."""
    _told(scope).extend((name.encode(), value.encode()) for name, value in headers.items())


class _Answer:
    """`send`, with our headers on the first message."""

    def __init__(self, send: Send, request_id: bytes, told: list[tuple[bytes, bytes]]) -> None:
        self.send = send
        self.request_id = request_id
        self.told = told
        self.started = False
        self.began = time.perf_counter()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            milliseconds = round((time.perf_counter() - self.began) * 1000)
            message["headers"] = [
                *message["headers"],
                *self.told,
                (b"x-request-id", self.request_id),
                (b"openai-processing-ms", str(milliseconds).encode()),
                (b"openai-version", API_VERSION),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self.send(message)


def _told(scope: Scope) -> list[tuple[bytes, bytes]]:
    """In `state`, which every copy of a scope shares."""
    headers: list[tuple[bytes, bytes]] = scope.setdefault("state", {}).setdefault("answer_headers", [])
    return headers


def _address(scope: Scope) -> str | None:
    """Behind a proxy: the client's, if the server was told to trust the proxy's word (FORWARDED_ALLOW_IPS)."""
    client = scope.get("client")
    return str(client[0]) if client else None


def _request_id(scope: Scope) -> bytes:
    """The client's, if it is one that may stand in a log line; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return bytes(value)
    return f"req_{secrets.token_hex(16)}".encode()


def _unprintable(scope: Scope) -> TuneryError | None:
    """PostgreSQL takes no NUL in text, and no id of ours holds one."""
    if "\x00" in scope["path"]:
        return NotFound("There is nothing under this URL: it holds a NUL character (%00).", code="unknown_url")
    if b"%00" in scope["query_string"]:
        return BadRequest("The query string holds a NUL character (%00), which no parameter may contain.")
    return None
