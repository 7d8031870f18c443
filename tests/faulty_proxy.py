"""A proxy in front of an S3 server that injects errors: other answers, lost connections, responses that break off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.domain.storage_location import S3Location
from tests.s3 import S3Server

CHUNK_BYTES = 1 << 16
XML = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"


@dataclass
class Fault:
    """What happens to the next `times` requests of `methods`; None: to all of them.

    With a `status` the proxy answers itself; with `break_after_bytes` the body of the response breaks off there; with
    neither the connection is closed without an answer. `action` runs before.
    """

    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    times: int | None = None
    status: int | None = None
    code: str = ""
    location: str = ""  # the header of a redirect
    break_after_bytes: int | None = None
    action: Callable[[], None] = lambda: None
    skip: int = 0  # so many requests pass before

    def applies(self, method: str) -> bool:
        if method not in self.methods or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FaultyProxy:
    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.fault: Fault | None = None
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True

    @property
    def location(self) -> S3Location:
        return replace(self.server.location, endpoint=self.endpoint)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            return self.fault if self.fault is not None and self.fault.applies(method) else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self.handle_request
                raise AttributeError(name)

            def handle_request(self) -> None:
                fault = proxy.next_fault(self.command, self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if fault is not None:
                    fault.action()
                if fault is None or fault.break_after_bytes is not None:
                    self.forward(body, fault.break_after_bytes if fault else None)
                elif fault.status is None:
                    self.close_connection = True
                else:
                    self.answer(fault.status, XML.format(code=fault.code).encode(), fault.location)

            def answer(self, status: int, body: bytes, location: str) -> None:
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def forward(self, body: bytes, break_after_bytes: int | None) -> None:
                connection = HTTPConnection("127.0.0.1", proxy.server.port, timeout=60)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    response = connection.getresponse()
                    self.send_response_only(response.status)
                    for name, value in response.getheaders():
                        if name.lower() not in ("connection", "transfer-encoding"):
                            self.send_header(name, value)
                    content = response.read()
                    if response.getheader("Content-Length") is None:
                        self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[:break_after_bytes])
                    if break_after_bytes is not None:
                        self.close_connection = True
                except OSError:  # the server is away, or the client
                    self.close_connection = True
                finally:
                    connection.close()

            def log_message(self, *_: object) -> None:
                return

        return Handler
