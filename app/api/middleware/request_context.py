"""The one middleware of all requests: framing, id, log line, metrics, limits of bodies, audit actor, Azure's names,
and JSON for unhandled errors.

Plain ASGI: bodies stream through it unchanged. The server's parser, llhttp, has refused most invalid HTTP; what it
accepts and a proxy may read differently is refused here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import structlog
from opentelemetry import trace
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.bootstrap_guard import BootstrapGuard
from app.api.error_handlers import error_response
from app.api.middleware.request_body import ReceivedBody
from app.api.middleware.request_log import CLIENT_CLOSED_REQUEST, RequestRecord, end_request
from app.db.access.audit import AuditContext, audited_as
from app.errors import BadRequest, NotFound, TuneryError
from app.log import get_logger

ENDS_OF_A_TASK = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
MAX_HEADER_BYTES = 16 << 10
AZURE_PREFIXES = ("/openai/v1/", "/openai/")  # of Azure's client, the newer and the older one
CLOSE = (b"connection", b"close")
HEADERS = [
    (b"openai-version", b"2020-10-01"),  # the value that OpenAI sends
    (b"x-content-type-options", b"nosniff"),
]

log = get_logger(__name__)


class RequestContextMiddleware:
    """Plain ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._guard = BootstrapGuard()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        record = RequestRecord.of_scope(scope, headers)
        scope.setdefault("state", {})["record"] = record
        body = ReceivedBody(scope, headers, receive, record)
        response = _ResponseSender(send, body, record)
        structlog.contextvars.bind_contextvars(request_id=record.request_id)
        trace.get_current_span().set_attribute("tunery.request_id", record.request_id)
        try:
            with audited_as(AuditContext(request_id=record.request_id, address=record.address)):
                await self._respond(scope, headers, body, response)
        finally:
            record.route = getattr(scope.get("route"), "path_format", None)
            end_request(record)
            structlog.contextvars.unbind_contextvars("request_id")

    async def _respond(
        self, scope: Scope, headers: Mapping[bytes, bytes], body: ReceivedBody, response: _ResponseSender
    ) -> None:
        respond = self.app
        if refusal := _framing_problem(scope, headers):
            respond = error_response(refusal, scope, {"Connection": "close"})
        elif problem := _nul_character_error(scope) or await self._guard.problem(scope):
            respond = error_response(problem, scope)
        else:
            _translate_azure(scope, headers)
        try:
            await respond(scope, body, response)
        except ClientDisconnect:
            response.record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
        except ENDS_OF_A_TASK:
            raise
        except BaseException:  # a panic of a library in Rust is no Exception
            log.exception("request failed")
            if body.is_answered:
                return  # too late for another status: the server closes the connection, as the response is incomplete
            await error_response(
                TuneryError(
                    "Internal server error. The server log has the details under the x-request-id of this response."
                ),
                scope,
            )(scope, body, response)


class _ResponseSender:
    """`send`, with the headers of the context on the first message.

    The rest of a body that no handler has read is discarded before the response ends, and the connection is closed.
    """

    def __init__(self, send: Send, body: ReceivedBody, record: RequestRecord) -> None:
        self.record = record
        self._send = send
        self._body = body

    async def __call__(self, message: Message) -> None:
        record = self.record
        if message["type"] == "http.response.start":
            self._body.is_answered = True
            if record.outcome is None:
                record.status = message["status"]
            message["headers"] = self._headers(message)
        elif message["type"] == "http.response.body":
            record.bytes_out += len(message.get("body", b""))
            if not message.get("more_body", False):
                is_rest_coming = not self._body.is_complete
                await self._send({**message, "more_body": is_rest_coming})
                record.ended_at = time.perf_counter()
                if is_rest_coming:
                    await self._body.discard_rest()
                    await self._send({"type": "http.response.body"})
                return
        await self._send(message)

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = message["headers"]
        if self.record.method == "HEAD" and message["status"] >= 400:
            # The message of an error may name the method, so its length may differ from that of GET (RFC 9110, 8.6)
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        milliseconds = round((time.perf_counter() - self.record.started_at) * 1000)
        return [
            *headers,
            *self.record.response_headers,
            (b"x-request-id", self.record.request_id.encode()),
            (b"openai-processing-ms", b"%d" % milliseconds),
            *HEADERS,
            *(() if self._body.is_complete else (CLOSE,)),
        ]


def _framing_problem(scope: Scope, headers: Mapping[bytes, bytes]) -> BadRequest | None:
    """The error for a request whose length or host a proxy may read differently: the rest of its body would be the next
    request (request smuggling, RFC 9112, 6.1 and 11.2)."""
    version = scope["http_version"]
    if version not in ("1.0", "1.1"):
        return BadRequest(f"The server speaks HTTP/1.1 and HTTP/1.0, not HTTP/{version}.")
    if len(headers) < len(scope["headers"]) or b"host" not in headers:
        hosts = sum(name == b"host" for name, _ in scope["headers"])
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            return BadRequest("The request has no Host header, or several; HTTP/1.1 requires one.")
    if (encoding := headers.get(b"transfer-encoding")) is not None:
        if version == "1.0":
            return BadRequest(
                "The request has a Transfer-Encoding, which HTTP/1.0 does not support; send a Content-Length."
            )
        if encoding.lower() != b"chunked":
            return BadRequest("The only Transfer-Encoding that the server supports is chunked.")
    if b"upgrade" in headers and (encoding is not None or headers.get(b"content-length", b"0") != b"0"):
        return BadRequest("The server upgrades to no other protocol and reads no body of such a request.")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return BadRequest(f"The request headers have more than {MAX_HEADER_BYTES:,} bytes.")
    return None


def _nul_character_error(scope: Scope) -> TuneryError | None:
    """The error for a NUL character in the URL: PostgreSQL does not store NUL in text, and no id contains one."""
    if "\x00" in scope["path"]:
        return NotFound("Unknown request URL: it contains a NUL character (%00).", code="unknown_url")
    if b"%00" in scope["query_string"]:
        return BadRequest("The query string contains a NUL character (%00), which no parameter may contain.")
    return None


def _translate_azure(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Give the calls of Azure's client, at /openai/... with an `api-key` header, their usual names."""
    for prefix in AZURE_PREFIXES:
        if scope["path"].startswith(prefix):
            scope["path"] = f"/v1/{scope['path'].removeprefix(prefix)}"
            break
    if b"api-key" in headers and b"authorization" not in headers:
        scope["headers"] = [*scope["headers"], (b"authorization", b"Bearer " + headers[b"api-key"])]
