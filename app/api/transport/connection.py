"""uvicorn's HTTP connection with limits on slow and idle clients, and with strict request framing.

The limits of a body that a handler reads are in `request_context`, where they apply under any server. This module has
those that no application can apply: incomplete request headers, idle connections, the rest of a body after the
response, and a response that the client does not read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
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
from app.errors import BadRequest, RequestTimeout, TuneryError
from app.settings import Settings

MAX_HEADER_BYTES = 16 << 10  # of a request line and its headers; h11's own default
# HTTP events that are parsed before the event loop runs other connections: some 4 ms. One read of 256 KiB may hold
# 40,000 chunks of a byte each, which take half a second.
MAX_EVENTS_AT_ONCE = 256

# uvicorn warns of each invalid request, which the request log already records.
logger = logging.getLogger(__name__)
ADVICE = "Send the request again; a resumable upload continues at its Upload-Offset."


logger.setLevel(logging.ERROR)


class LimitedConnection(H11Protocol):
    """For uvicorn's `--http`. The settings come from the state of the application's lifespan."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings: Settings = app_state["settings"]
        self.conn = self._parser = _StrictParser(h11.SERVER, MAX_HEADER_BYTES)
        self.logger = logger
        self.timeout_keep_alive = self._settings.keep_alive_seconds
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
        super().data_received(data)
        self._update_timers(len(data))

    def handle_events(self) -> None:
        """Parse the received bytes, MAX_EVENTS_AT_ONCE events at a time; reading pauses until all are parsed."""
        self._parser.events_left = MAX_EVENTS_AT_ONCE
        super().handle_events()
        if self.transport.is_closing():
            return
        if self._parser.events_left > 0:
            self._flow.resume_after_parsing()
        elif self._parse_handle is None:
            self._flow.pause_for_parsing()
            self._parse_handle = self.loop.call_soon(self._parse_rest)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_timers(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete and (record := record_of(self.cycle.scope)):
            record.end("client_disconnected", CLIENT_CLOSED_REQUEST)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's text has no details
        """Respond to invalid HTTP: a malformed request, or malformed chunks of a body."""
        error = BadRequest(self._parser.refusal or "The request is not valid HTTP/1.1; the server stopped reading it.")
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(error)
        else:
            self._abort_cycle(error)

    def _should_upgrade(self) -> bool:
        """False: the service has no websockets and ignores the header (RFC 9110, 7.8)."""
        return False

    def _parse_rest(self) -> None:
        self._parse_handle = None
        if not self.transport.is_closing():
            self.handle_events()
            self._update_timers(0)

    def _update_timers(self, received_bytes: int) -> None:
        """Run the timer for what the connection awaits: request headers, the rest of a body, or nothing."""
        if self.transport.is_closing():
            self._stop_timers()
            return
        is_idle = self.conn.their_state is h11.IDLE
        if not is_idle:
            self._stop_header_timer()
        elif self._header_timer is None:
            self._await_request()
        if self.conn.their_state is h11.SEND_BODY and self.cycle is not None and self.cycle.response_complete:
            self._drain(received_bytes)
        elif self._drain_pace is not None:
            self._stop_draining()

    def _await_request(self) -> None:
        if self.conn.trailing_data[0]:
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
        if self.conn.trailing_data[0]:
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
        request = self._parser.refused
        headers = list(request.headers) if request else []
        record = RequestRecord(request_id_of(headers))
        record.started_at -= waited_seconds
        record.end("request_timeout" if isinstance(error, RequestTimeout) else "invalid_request", error.status)
        record.bytes_out = self._write_error(error, record.request_id)
        scope: dict[str, Any] = {"client": self.client}
        if request:
            path, _, query = request.target.partition(b"?")
            scope |= {"method": request.method.decode(), "path": path.decode(), "query_string": query}
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
        body = bytes(response.body)
        for event in (
            h11.Response(status_code=error.status, headers=headers, reason=HTTPStatus(error.status).phrase),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        return len(body)

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


class _StrictParser(h11.Connection):
    """Refuses a request with an ambiguous length, and stops after `events_left` events.

    A proxy that reads the length differently would treat the rest of one request as the next one: request smuggling
    (RFC 9112, 6.1 and 11.2).
    """

    refused: h11.Request | None = None
    refusal: str | None = None
    events_left = MAX_EVENTS_AT_ONCE

    def next_event(self) -> Any:
        if self.events_left <= 0:
            return h11.NEED_DATA
        event = super().next_event()
        if event is not h11.NEED_DATA:
            self.events_left -= 1
        if type(event) is h11.Request and (refusal := _ambiguous_length(event)):
            self.refused, self.refusal = event, refusal
            raise h11.RemoteProtocolError(refusal)
        return event


def _ambiguous_length(request: h11.Request) -> str | None:
    """Why the length of the body is ambiguous; None if it is not."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return "The request has both Content-Length and Transfer-Encoding; send one of them."
    if request.http_version < b"1.1":
        return "The request has a Transfer-Encoding, which HTTP/1.0 does not support; send a Content-Length."
    return None


def _limit_unacknowledged(transport: asyncio.Transport, seconds: float) -> None:
    """Set the kernel to close the connection when the client acknowledges no byte of a response for `seconds`.

    This includes a client that is connected but does not read (a zero window). Only Linux has this option.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


class BodyPace:
    """The two limits of a body that is still arriving: the longest pause and the lowest average rate.

    Only the time that the server waits for the client counts, not the time that a slow disk takes to store the body.
    The average is taken over consecutive windows of `body_rate_window_seconds`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paused_seconds = 0.0
        self._window_seconds = 0.0
        self._window_bytes = 0

    @property
    def next_check_seconds(self) -> float:
        """How much longer the server may wait before `add` has to be called, with or without new bytes."""
        pause_left_seconds = self._settings.body_idle_seconds - self._paused_seconds
        return max(0.0, min(pause_left_seconds, self._settings.body_rate_window_seconds - self._window_seconds))

    def add(self, waited_seconds: float, received_bytes: int) -> None:
        """Add one wait for the client and the bytes received. Raises RequestTimeout when a limit is reached."""
        self._paused_seconds = 0.0 if received_bytes else self._paused_seconds + waited_seconds
        self._window_seconds += waited_seconds
        self._window_bytes += received_bytes
        idle_seconds = self._settings.body_idle_seconds
        if self._paused_seconds >= idle_seconds:
            raise RequestTimeout(f"No byte of the request body arrived for {idle_seconds:g} s. {ADVICE}")
        if self._window_seconds >= self._settings.body_rate_window_seconds:
            self._check_rate()
            self._window_seconds, self._window_bytes = 0.0, 0

    def _check_rate(self) -> None:
        min_bytes_per_second = self._settings.body_min_bytes_per_second
        if self._window_bytes < min_bytes_per_second * self._window_seconds:
            raise RequestTimeout(
                f"The request body arrived at less than {min_bytes_per_second:g} bytes per second, averaged over "
                f"{self._settings.body_rate_window_seconds:g} s. {ADVICE}"
            )
