"""A connection to the API that a test can cut and mend, as while it restarts, or hold, as while it is slow."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK_BYTES = 1 << 16


class Link:
    """Forwards TCP connections to `target_port`; while it is cut, connections are closed at once, and while it is held,
    their bytes wait.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._is_cut = False
        self._is_flowing = threading.Event()
        self._is_flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def cut(self) -> Iterator[None]:
        self._is_cut = True
        self._close_all()
        try:
            yield
        finally:
            self._is_cut = False

    @contextmanager
    def held(self) -> Iterator[None]:
        self._is_flowing.clear()
        try:
            yield
        finally:
            self._is_flowing.set()

    def close(self) -> None:
        self._is_cut = True
        self._close_all()
        self._listener.close()

    def _close_all(self) -> None:
        for one in self._open:
            _close(one)
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target_port))
                self._open += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                self._is_flowing.wait()
                target.sendall(chunk)
        _close(target)


@contextmanager
def link(target_port: int) -> Iterator[Link]:
    one = Link(target_port)
    try:
        yield one
    finally:
        one.close()


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
