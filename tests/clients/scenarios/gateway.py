"""A gateway as stands before many services: another path, more headers, chunked bodies, faults on request."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from local_server import running

HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server")
Fault = Callable[[str, int], bool]


@dataclass
class Gateway:
    upstream: str
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    loses: Fault = lambda request, number: False  # the answer to this request, which the service has carried out
    url: str = ""
    seen: list[str] = field(default_factory=list)


@contextlib.contextmanager
def gateway(upstream: str, **options: Any) -> Iterator[Gateway]:
    front = Gateway(upstream, **options)
    with running(_handler(front)) as front.url:
        yield front


def _handler(front: Gateway) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            assert self.path.startswith(front.prefix), f"{self.path} does not go through {front.prefix}"
            path = self.path.removeprefix(front.prefix)
            request = f"{self.command} {urlsplit(path).path}"
            front.seen.append(request)
            status, headers, content = _ask(front, self.command, path, dict(self.headers.items()), body)
            if front.loses(request, front.seen.count(request)):
                status, headers, content = 503, [("Content-Type", "text/html")], b"<h1>503 upstream timed out</h1>"
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Via", "1.1 gateway")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = handle_any  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def _ask(
    front: Gateway, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    address = urlsplit(front.upstream)
    kept = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
    added = {"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https", "Via": "1.1 gateway", **front.headers}
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    chunks = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]
    try:
        connection.request(method, path, body=iter(chunks), headers=kept | added, encode_chunked=True)
        answer = connection.getresponse()
        back = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        return answer.status, back, answer.read()
    finally:
        connection.close()
