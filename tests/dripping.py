"""A server whose responses never end: every byte resets the timeout of a client that has no total limit."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def dripping(what: str) -> Iterator[str]:
    """The address of a server whose responses never end: a byte of the headers, or of the body, every 20 ms."""
    stopped = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n" if what != "nothing" else b"")
            self.wfile.write(b"\r\n" if what == "body" else b"")
            while not stopped.wait(0.02):  # the pace of the server, not a wait of a test
                with suppress(OSError):
                    self.wfile.write({"headers": b"x: 1\r\n", "body": b"x", "nothing": b""}[what])

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            stopped.set()
            server.shutdown()
            thread.join()
