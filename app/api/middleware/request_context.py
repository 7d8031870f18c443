"""Around every request: its id, its time, its log line, the limits of its body, who acts in it, and a JSON answer to
what nobody handled.

Outermost of our middlewares, and plain ASGI: bodies stream through it untouched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.error_handlers import error_response
from app.api.middleware.request_log import CLIENT_CLOSED_REQUEST, RequestRecord, log_request, start_record
from app.api.transport.body_pace import BodyPace
from app.db.access.audit import AuditContext, audited_as
from app.errors import BadRequest, NotFound, RequestTimeout, TuneryError
from app.log import get_logger

API_VERSION = b"2020-10-01"  # what OpenAI sends as `openai-version`

log = get_logger(__name__)


class Envelope:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        record = start_record(scope)
        answer = _Answer(send, record, _told(scope))
        structlog.contextvars.bind_contextvars(request_id=record.request_id)
        try:
            with audited_as(AuditContext(request_id=record.request_id, address=_address(scope))):
                await self._answer(scope, _Body(scope, receive, answer), answer)
        finally:
            log_request(scope, record)
            structlog.contextvars.unbind_contextvars("request_id")

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if problem := _unprintable(scope):
            await error_response(problem)(scope, receive, answer)
            return
        try:
            await self.app(scope, receive, answer)
        except ClientDisconnect:
            answer.record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
        except Exception:
            log.exception("request failed")
            if answer.started:
                return  # too late for another status: the server cuts a connection whose response is not complete
            await error_response(TuneryError("Something went wrong on our side; the log has the details."))(
                scope, receive, answer
            )


def tell_with_answer(scope: Scope, headers: Mapping[str, str]) -> None:
    """Headers for whatever this request is answered with, an error included."""
    _told(scope).extend((name.encode(), value.encode()) for name, value in headers.items())


class _Body:
    """`receive`, with a limit on how slowly a body may come.

    Where the response has begun, too late for a 408, the client counts as gone.
    """

    def __init__(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        self._scope = scope
        self._receive = receive
        self._answer = answer
        self._pace: BodyPace | None = None
        self._is_complete = False

    async def __call__(self) -> Message:
        message = await (self._receive() if self._is_complete else self._receive_in_time())
        record = self._answer.record
        if message["type"] == "http.disconnect":
            if record.ended is None:
                record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
            return message
        record.bytes_in += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        return message

    async def _receive_in_time(self) -> Message:
        now = asyncio.get_running_loop().time
        pace = self._pace = self._pace or BodyPace(self._scope["app"].state.engines.settings)
        try:
            while True:
                began = now()
                try:
                    async with asyncio.timeout(pace.next_check_seconds):
                        message = await self._receive()
                except TimeoutError:
                    pace.add(now() - began, 0)
                else:
                    pace.add(now() - began, len(message.get("body", b"")))
                    return message
        except RequestTimeout:
            if not self._answer.started:
                raise
            self._answer.record.end("request_timeout", RequestTimeout.status)
            return {"type": "http.disconnect"}


class _Answer:
    """`send`, with our headers on the first message."""

    def __init__(self, send: Send, record: RequestRecord, told: list[tuple[bytes, bytes]]) -> None:
        self.send = send
        self.record = record
        self.told = told
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self.record.outcome is None:
                self.record.status = message["status"]
            milliseconds = round((time.perf_counter() - self.record.began) * 1000)
            message["headers"] = [
                *message["headers"],
                *self.told,
                (b"x-request-id", self.record.request_id.encode()),
                (b"openai-processing-ms", str(milliseconds).encode()),
                (b"openai-version", API_VERSION),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self.send(message)
        if message["type"] == "http.response.body":
            self.record.bytes_out += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.record.ended = time.perf_counter()


def _told(scope: Scope) -> list[tuple[bytes, bytes]]:
    """In `state`, which every copy of a scope shares."""
    headers: list[tuple[bytes, bytes]] = scope.setdefault("state", {}).setdefault("answer_headers", [])
    return headers


def _address(scope: Scope) -> str | None:
    """Behind a proxy: the client's, if the server was told to trust the proxy's word (FORWARDED_ALLOW_IPS)."""
    client = scope.get("client")
    return str(client[0]) if client else None


def _unprintable(scope: Scope) -> TuneryError | None:
    """PostgreSQL takes no NUL in text, and no id of ours holds one."""
    if "\x00" in scope["path"]:
        return NotFound("There is nothing under this URL: it holds a NUL character (%00).", code="unknown_url")
    if b"%00" in scope["query_string"]:
        return BadRequest("The query string holds a NUL character (%00), which no parameter may contain.")
    return None
