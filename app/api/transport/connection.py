"""uvicorn's HTTP connection with limits on slow and idle clients, and with strict request framing.

The limits of a body that a handler reads are in `request_context`, where they apply under any server. This module has
those that no application can apply: incomplete request headers, idle connections, the rest of a body after the
response, and a response that the client does not read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from enum import Enum, auto
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.api.error_handlers import error_response
from app.api.middleware.request_log import (
    CLIENT_CLOSED_REQUEST,
    RequestRecord,
    log_request,
    observe_request,
    record_of,
    request_id_of,
    start_record,
)
from app.api.transport.body_pace import BodyPace
from app.errors import BadRequest, RequestTimeout, TuneryError
from app.settings import Settings

MAX_HEADER_BYTES = 16 << 10  # of a request line and its headers
# Bytes that are parsed before the event loop runs other connections, unless they are of one body with a length: at most
# 700 chunks or 200 requests, a few milliseconds. One read of 256 KiB may hold 40,000 chunks of a byte each.
MAX_PARSED_AT_ONCE = 4096
INVALID_HTTP = "The request is not valid HTTP/1.1; the server stopped reading it."

# uvicorn warns of each invalid request, which the request log already records.
logger = logging.getLogger(__name__)
logger.setLevel(logging.ERROR)


class Receiving(Enum):
    """What the connection receives next."""

    NOTHING = auto()  # it is between two requests
    HEADERS = auto()
    BODY = auto()


class LimitedConnection(HttpToolsProtocol):
    """For uvicorn's `--http`. The settings come from the state of the application's lifespan."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = self._new_parser()
        self._settings: Settings = app_state["settings"]
        self.logger = logger
        self.timeout_keep_alive = self._settings.keep_alive_seconds
        self._part = Receiving.NOTHING
        self._unparsed = b""
        self._header_bytes = 0
        self._body_bytes_left = 0  # of a body with a Content-Length
        self._running: RequestResponseCycle | None = None  # the oldest request whose response is not complete
        self._refusal: BadRequest | None = None  # of the next request, once the responses before it are complete
        self._parse_handle: asyncio.Handle | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self._drain_pace: BodyPace | None = None
        self._last_drain_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._flow = _PausableFlow(transport)
        _limit_unacknowledged(transport, self._settings.response_stall_seconds)
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        if self._parse_handle is None:
            self._parse()
        self._update_timers(len(data))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()  # not for each line break between requests
        self._part = Receiving.HEADERS

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.scope["method"] = self.parser.get_method().decode()
        self._body_bytes_left = _body_bytes(self.headers, self.parser.get_http_version())
        target = self.url
        if not target.startswith(b"/"):
            self.url = b"/"  # uvicorn would drop the host of an absolute target, which AbsoluteTargetMiddleware reads
        super().on_headers_complete()
        if target != self.url:
            raw_path, _, query = target.partition(b"?")
            path = unquote(raw_path.decode("ascii"))
            self.scope.update({"path": path, "raw_path": raw_path, "query_string": query})
        self._part = Receiving.BODY

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._body_bytes_left -= len(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._part, self._header_bytes, self._body_bytes_left = Receiving.NOTHING, 0, 0

    def on_response_complete(self) -> None:
        self._running = None
        super().on_response_complete()
        if self._running is None and self._refusal is not None and not self.transport.is_closing():
            self._refuse(self._refusal)
        elif self._unparsed and self._parse_handle is None:
            self._parse_handle = self.loop.call_soon(self._parse_rest)
        self._update_timers(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self._unset_keepalive_if_required()
        if self._running is not None:
            if record := record_of(self._running.scope):
                record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
            self._running.disconnected = True  # uvicorn sets that of the newest request, which may wait for this one
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        """False: the service has no websockets and ignores the header (RFC 9110, 7.8)."""
        return False

    def _parse(self) -> None:
        """Parse some of the received bytes. Reading pauses until all are parsed.

        Requests that the client sends without waiting are parsed when the responses before them are complete.
        """
        if self.pipeline or (self._running is not None and self._part is Receiving.NOTHING):
            self._flow.pause_for_parsing()
            return
        size = max(MAX_PARSED_AT_ONCE, self._body_bytes_left)
        part, self._unparsed = self._unparsed[:size], self._unparsed[size:]
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(part[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._on_invalid_http(error)
            return
        if self._part is Receiving.HEADERS:
            self._header_bytes += len(part)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._on_invalid_http(BadRequest(f"The request headers have more than {MAX_HEADER_BYTES:,} bytes."))
                return
        if not self._unparsed:
            self._flow.resume_after_parsing()
        else:
            self._flow.pause_for_parsing()
            self._parse_handle = self.loop.call_soon(self._parse_rest)

    def _new_parser(self) -> httptools.HttpRequestParser:
        """A parser that reads all headers of a request with two lengths, for its line in the log.

        `_body_bytes` refuses such a request.
        """
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True, lenient_chunked_length=True)
        return parser

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its header `Upgrade`, after which llhttp reads no body and no request."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._on_invalid_http(BadRequest("The service is no proxy: it has no method CONNECT."))
            return
        headers = (b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade")
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(headers))
        self.parser = self._new_parser()
        self._part, self._header_bytes, self._unparsed = Receiving.NOTHING, 0, head + rest + self._unparsed
        self._parse()

    def _parse_rest(self) -> None:
        self._parse_handle = None
        if not self.transport.is_closing():
            self._parse()
            self._update_timers(0)

    def _on_invalid_http(self, error: Exception) -> None:
        """Respond to a malformed request, or to malformed chunks of a body."""
        self._unparsed = b""
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        refusal = cause if isinstance(cause, BadRequest) else BadRequest(INVALID_HTTP)
        if self._running is None:
            self._refuse(refusal)
        elif self._part is Receiving.BODY and self._running is self.cycle:
            self._abort_cycle(refusal)
        else:
            self._refusal = refusal
            self._flow.pause_for_parsing()

    def _update_timers(self, received_bytes: int) -> None:
        """Run the timer for what the connection awaits: request headers, the rest of a body, or nothing."""
        if self.transport.is_closing():
            self._stop_timers()
            return
        is_answered = self._running is None
        if not is_answered or self._part is Receiving.BODY:
            self._stop_header_timer()
        elif self._header_timer is None:
            self._await_request()
        if self._part is Receiving.BODY and is_answered:
            self._unset_keepalive_if_required()  # uvicorn starts it with the response, also before the rest of a body
            self._drain(received_bytes)
        elif self._drain_pace is not None:
            self._stop_draining()

    def _await_request(self) -> None:
        if self._part is Receiving.HEADERS:
            self._start_header_timer()
        elif self.timeout_keep_alive_task is None:  # uvicorn starts it after a response, not after the rest of a body
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._settings.header_timeout_seconds, self._on_header_timeout)

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self._part is Receiving.HEADERS:
            seconds = self._settings.header_timeout_seconds
            self._refuse(RequestTimeout(f"The request headers were not complete after {seconds:g} s."), seconds)
        else:
            self.transport.close()

    def _drain(self, received_bytes: int) -> None:
        """Read and discard the rest of a body, so that a client that is still sending can read the response."""
        now = self.loop.time()
        if self._drain_pace is None:
            self._drain_pace, self._last_drain_at, received_bytes = BodyPace(self._settings), now, 0
        try:
            self._drain_pace.add(now - self._last_drain_at, received_bytes)
        except RequestTimeout:
            self._stop_draining()
            self.transport.close()
            return
        self._last_drain_at = now
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        self._drain_timer = self.loop.call_later(self._drain_pace.next_check_seconds, self._update_timers, 0)

    def _refuse(self, error: TuneryError, waited_seconds: float = 0.0) -> None:
        """Respond to and log a request that did not reach the application, and close the connection."""
        has_head = self._part is not Receiving.NOTHING
        record = RequestRecord(request_id_of(self.headers if has_head else ()))
        record.started_at -= waited_seconds
        record.end("request_timeout" if isinstance(error, RequestTimeout) else "invalid_request", error.status)
        record.bytes_out = self._write_error(error, record.request_id)
        scope: dict[str, Any] = {"client": self.client}
        if has_head and "method" in self.scope:  # its headers are complete
            path, _, query = self.url.partition(b"?")
            scope |= {"method": self.scope["method"], "path": path.decode("latin-1"), "query_string": query}
        log_request(scope, record)
        observe_request(scope, record)

    def _abort_cycle(self, error: TuneryError) -> None:
        """End a running request whose body is invalid: its handler receives a disconnect."""
        cycle = self.cycle
        record = start_record(cycle.scope)  # the application may not have started, if both came in one packet
        record.end("invalid_request", error.status)
        if not cycle.response_started:
            record.bytes_out = self._write_error(error, record.request_id)
        self.transport.close()
        cycle.disconnected = True
        cycle.message_event.set()

    def _write_error(self, error: TuneryError, request_id: str) -> int:
        """Send `error` as the response and close the connection. Returns the length of the body."""
        response = error_response(error)
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"x-request-id", request_id.encode())]
        if not isinstance(error, RequestTimeout):  # which has this header already
            headers.append((b"connection", b"close"))
        lines = [STATUS_LINE[error.status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n"]
        self.transport.write(b"".join(lines) + response.body)
        self.transport.close()
        return len(response.body)

    def _stop_timers(self) -> None:
        self._stop_header_timer()
        self._stop_draining()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_draining(self) -> None:
        self._drain_pace = None
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None


class _PausableFlow(FlowControl):
    """uvicorn's flow control, with a second reason to pause reading: earlier bytes are not parsed yet."""

    is_paused_by_parser = False

    def pause_for_parsing(self) -> None:
        self.is_paused_by_parser = True
        self._transport.pause_reading()

    def resume_after_parsing(self) -> None:
        if self.is_paused_by_parser:
            self.is_paused_by_parser = False
            if not self.read_paused:
                self._transport.resume_reading()

    def resume_reading(self) -> None:
        super().resume_reading()
        if self.is_paused_by_parser:
            self._transport.pause_reading()


def _body_bytes(headers: list[tuple[bytes, bytes]], http_version: str) -> int:
    """The length of the body, 0 for one in chunks. Raises BadRequest if the length or the host is ambiguous.

    A proxy that reads the length differently would treat the rest of one request as the next one: request smuggling
    (RFC 9112, 6.1 and 11.2).
    """
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise BadRequest(f"The request headers have more than {MAX_HEADER_BYTES:,} bytes.")
    given = dict(headers)
    if http_version == "1.1" and sum(name == b"host" for name, _ in headers) != 1:
        raise BadRequest("The request has no Host header, or several; HTTP/1.1 requires one.")
    if b"transfer-encoding" not in given:
        return int(given.get(b"content-length", 0))
    if b"content-length" in given:
        raise BadRequest("The request has both Content-Length and Transfer-Encoding; send one of them.")
    if http_version != "1.1":
        raise BadRequest("The request has a Transfer-Encoding, which HTTP/1.0 does not support; send a Content-Length.")
    if given[b"transfer-encoding"].lower() != b"chunked":
        raise BadRequest("The only Transfer-Encoding that the server supports is chunked.")
    return 0


def _limit_unacknowledged(transport: asyncio.Transport, seconds: float) -> None:
    """Set the kernel to close the connection when the client acknowledges no byte of a response for `seconds`.

    This includes a client that is connected but does not read (a zero window). Only Linux has this option.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
