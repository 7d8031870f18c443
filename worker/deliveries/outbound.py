"""Connections of the delivery sender: only to addresses that the operator allows, whatever library connects.

A project chooses the hosts of its targets, so they must not give access to servers in the operator's network. Several
libraries connect, some of them follow redirects, and each has its own way to resolve names; all of them call
`socket.getaddrinfo` and connect to one of the addresses that it returns. So that is where addresses are checked: a
redirect and a name that resolves differently a moment later (DNS rebinding) are checked like every other connection.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from app.domain.access.outbound_networks import Network, refused_address_text

_thread = threading.local()


class RefusedAddress(OSError):
    """The operator does not allow connections to this address."""


@contextmanager
def guard_connections(networks: Sequence[Network]) -> Iterator[None]:
    """Refuse connections of this process to other than public addresses and `networks`, except trusted ones."""
    resolve = socket.getaddrinfo

    def resolve_checked(host: Any, *arguments: Any, **keywords: Any) -> Any:
        found = resolve(host, *arguments, **keywords)
        if not getattr(_thread, "is_trusted", False):
            for entry in found:
                _check(host, str(entry[4][0]), networks)
        return found

    socket.getaddrinfo = resolve_checked
    try:
        yield
    finally:
        socket.getaddrinfo = resolve


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


def _check(host: Any, address: str, networks: Sequence[Network]) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    text = refused_address_text(name, [address], networks, "TUNERY_DELIVERY_ALLOWED_NETWORKS")
    if text is not None:
        raise RefusedAddress(text)
