"""The context of every request: id, timing, log line, body limits, audit actor, and JSON for unhandled errors.

The outermost middleware that sees bodies. Plain ASGI: bodies stream through it unchanged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import structlog
from opentelemetry import trace
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.error_handlers import error_response
from app.api.middleware.request_log import (
    CLIENT_CLOSED_REQUEST,
    RequestRecord,
    log_request,
    observe_request,
    start_record,
)
from app.api.transport.body_pace import BodyPace
from app.db.access.audit import AuditContext, audited_as
from app.errors import BadRequest, NotFound, RequestTimeout, TuneryError
from app.log import get_logger

ENDS_OF_A_TASK = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
API_VERSION = b"2020-10-01"  # the value that OpenAI sends as `openai-version`

log = get_logger(__name__)


class RequestContextMiddleware:
    """Plain ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        record = start_record(scope)
        response = _ResponseSender(send, record, _extra_response_headers(scope))
        structlog.contextvars.bind_contextvars(request_id=record.request_id)
        trace.get_current_span().set_attribute("tunery.request_id", record.request_id)
        try:
            with audited_as(AuditContext(request_id=record.request_id, address=_address(scope))):
                await self._respond(scope, _BodyReceiver(scope, receive, response), response)
        finally:
            log_request(scope, record)
            observe_request(scope, record)
            structlog.contextvars.unbind_contextvars("request_id")

    async def _respond(self, scope: Scope, receive: Receive, response: _ResponseSender) -> None:
        if problem := _nul_character_error(scope):
            await error_response(problem)(scope, receive, response)
            return
        try:
            await self.app(scope, receive, response)
        except ClientDisconnect:
            response.record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
        except ENDS_OF_A_TASK:
            raise
        except BaseException:  # a panic of a library in Rust is no Exception
            log.exception("request failed")
            if response.started:
                return  # too late for another status: the server closes the connection, as the response is incomplete
            await error_response(
                TuneryError(
                    "Internal server error. The server log has the details under the x-request-id of this response."
                )
            )(scope, receive, response)


def add_response_headers(scope: Scope, headers: Mapping[str, str]) -> None:
    """Add `headers` to the response of this request, whether it succeeds or fails."""
    _extra_response_headers(scope).extend((name.encode(), value.encode()) for name, value in headers.items())


class _BodyReceiver:
    """`receive` with a limit on how slowly a body may arrive.

    When the response has begun, a 408 is impossible: the handler receives a disconnect instead.
    """

    def __init__(self, scope: Scope, receive: Receive, response: _ResponseSender) -> None:
        self._scope = scope
        self._receive = receive
        self._response = response
        self._pace: BodyPace | None = None
        self._is_complete = False

    async def __call__(self) -> Message:
        message = await (self._receive() if self._is_complete else self._receive_in_time())
        record = self._response.record
        if message["type"] == "http.disconnect":
            if record.ended_at is None:
                record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
            return message
        record.bytes_in += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        return message

    async def _receive_in_time(self) -> Message:
        now = asyncio.get_running_loop().time
        pace = self._pace = self._pace or BodyPace(self._scope["app"].state.app_state.settings)
        try:
            while True:
                started_at = now()
                try:
                    async with asyncio.timeout(pace.next_check_seconds):
                        message = await self._receive()
                except TimeoutError:
                    pace.add(now() - started_at, 0)
                else:
                    pace.add(now() - started_at, len(message.get("body", b"")))
                    return message
        except RequestTimeout:
            if not self._response.started:
                raise
            self._response.record.end("request_timeout", RequestTimeout.status)
            return {"type": "http.disconnect"}


class _ResponseSender:
    """`send`, with the headers of the context on the first message."""

    def __init__(self, send: Send, record: RequestRecord, extra_headers: list[tuple[bytes, bytes]]) -> None:
        self.send = send
        self.record = record
        self.extra_headers = extra_headers
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self.record.outcome is None:
                self.record.status = message["status"]
            milliseconds = round((time.perf_counter() - self.record.started_at) * 1000)
            message["headers"] = [
                *message["headers"],
                *self.extra_headers,
                (b"x-request-id", self.record.request_id.encode()),
                (b"openai-processing-ms", str(milliseconds).encode()),
                (b"openai-version", API_VERSION),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self.send(message)
        if message["type"] == "http.response.body":
            self.record.bytes_out += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.record.ended_at = time.perf_counter()


def _extra_response_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The list of additional headers. It is kept in `state`, which all copies of a scope share."""
    headers: list[tuple[bytes, bytes]] = scope.setdefault("state", {}).setdefault("response_headers", [])
    return headers


def _address(scope: Scope) -> str | None:
    """The client's address; behind a proxy the forwarded one, if the server trusts the proxy (FORWARDED_ALLOW_IPS)."""
    client = scope.get("client")
    return str(client[0]) if client else None


def _nul_character_error(scope: Scope) -> TuneryError | None:
    """The error for a NUL character in the URL: PostgreSQL does not store NUL in text, and no id contains one."""
    if "\x00" in scope["path"]:
        return NotFound("Unknown request URL: it contains a NUL character (%00).", code="unknown_url")
    if b"%00" in scope["query_string"]:
        return BadRequest("The query string contains a NUL character (%00), which no parameter may contain.")
    return None
