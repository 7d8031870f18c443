"""Connections of the delivery sender: only to addresses that the operator allows, and only for a limited time.

They are guarded below the libraries, whatever library connects.

A project chooses the hosts of its targets, so they must not give access to servers in the operator's network. Several
libraries connect, some of them follow redirects, and each has its own way to resolve names; all of them call
`socket.getaddrinfo` and connect to one of the addresses that it returns. So that is where addresses are checked: a
redirect and a name that resolves differently a moment later (DNS rebinding) are checked like every other connection.

The timeouts of the libraries begin anew with every byte, so a server that sends one now and then holds a thread without
end. `limited_connections` therefore ends the connections themselves.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine, event

from app.domain.access.outbound_networks import Network, refused_address_text

_thread = threading.local()


class RefusedAddress(OSError):
    """The operator does not allow connections to this address."""


class Limit:
    """The connections of a thread while a limit of time holds."""

    def __init__(self) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def add(self, connected: socket.socket) -> None:
        """Raises TimeoutError, so that no library tries again."""
        with self._lock:
            if self.is_over:
                raise TimeoutError("the time for the attempt is over")
            # TLS takes the descriptor out of the socket; one of its own still ends the connection.
            self._sockets.append(socket.socket(fileno=os.dup(connected.fileno())))

    def end(self) -> None:
        """Close the connections: a read or write of one of them ends with an error."""
        with self._lock:
            self.is_over = True
            for each in self._sockets:
                with suppress(OSError):  # it is closed already
                    each.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()


@contextmanager
def limited_connections(seconds: float) -> Iterator[Limit]:
    """End the connections that this thread makes in the block, and refuse further ones, when the time is over.

    Works inside `guard_connections`, also nested. Not for connections of threads that a library starts.
    """
    limit, outer = Limit(), getattr(_thread, "limits", ())
    timer = threading.Timer(seconds, limit.end)
    timer.daemon = True
    _thread.limits = (*outer, limit)
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()
        _thread.limits = outer
        limit.release()


@contextmanager
def guard_connections(networks: Sequence[Network]) -> Iterator[None]:
    """Refuse connections of this process to other than public addresses and `networks`, except trusted ones."""
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def connect_limited(connecting: socket.socket, address: Any) -> None:
        connect(connecting, address)
        if not getattr(_thread, "is_trusted", False):
            for limit in getattr(_thread, "limits", ()):
                limit.add(connecting)

    def resolve_checked(host: Any, *arguments: Any, **keywords: Any) -> Any:
        found = resolve(host, *arguments, **keywords)
        if not getattr(_thread, "is_trusted", False):
            name = host.decode() if isinstance(host, bytes) else host
            for entry in found:
                text = refused_address_text(name, [str(entry[4][0])], networks, "TUNERY_DELIVERY_ALLOWED_NETWORKS")
                if text is not None:
                    raise RefusedAddress(text)
        return found

    socket.getaddrinfo = resolve_checked
    socket.socket.connect = connect_limited  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        socket.getaddrinfo = resolve
        socket.socket.connect = connect  # type: ignore[method-assign]


@contextmanager
def trusted_connections() -> Iterator[None]:
    """In the block this thread connects to the operator's own servers: the database and the storage."""
    before = getattr(_thread, "is_trusted", False)
    _thread.is_trusted = True
    try:
        yield
    finally:
        _thread.is_trusted = before


def trust_database(engine: Engine) -> None:
    """Let the engine connect: psycopg resolves the name of the database's host, too."""

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
        with trusted_connections():
            return dialect.connect(*arguments, **parameters)


def refused_address(error: BaseException) -> RefusedAddress | None:
    """The refusal behind an error of a library, if that is its cause."""
    seen: set[int] = set()
    causes: list[BaseException | None] = [error]
    while causes:
        cause = causes.pop()
        if cause is None or id(cause) in seen:
            continue
        if isinstance(cause, RefusedAddress):
            return cause
        seen.add(id(cause))
        causes += [cause.__cause__, cause.__context__]
    return None
