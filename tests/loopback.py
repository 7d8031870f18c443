"""A web server on loopback that answers by a function: what receivers, engines, hubs and endpoints of the tests are."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


# (status, headers, body), or a function that writes the response with the handler.
Answer = tuple[int, Mapping[str, str], bytes] | Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving_loopback(
    respond: Callable[[Received], Answer], port: int = 0, tls: ssl.SSLContext | None = None, protocol: str = "HTTP/1.0"
) -> Iterator[int]:
    """Serve until the block ends; yield the port. A client that is gone is no error."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = protocol

        def _handle(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            is_chunked = "chunked" in headers.get("transfer-encoding", "")
            body = self._chunks() if is_chunked else self.rfile.read(int(headers.get("content-length") or 0))
            answer = respond(Received(self.command, self.path, headers, body))
            with suppress(OSError):
                self._send(*answer) if isinstance(answer, tuple) else answer(self)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response_only(status)
            length = {} if status == 204 else {"Content-Length": str(len(body))}
            for name, value in (length | dict(headers)).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *where: Any) -> None:
            if not isinstance(sys.exc_info()[1], OSError):
                super().handle_error(*where)

    server = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
