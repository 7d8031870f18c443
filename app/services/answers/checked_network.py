"""Connections to engines: only to addresses that the operator allows, as the delivery sender's.

A project chooses the URLs of its engines, so they must not give access to servers in the operator's network. The host
is resolved here, every address is checked, and the connection uses a checked address: a name that resolves differently
a moment later (DNS rebinding) has no effect.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence

import httpcore2

from app.domain.access.outbound_networks import Network, refused_address_text


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._sockets = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that accepts. Raises httpcore2.ConnectError, ConnectTimeout."""
        failed: Exception | None = None
        for address in await self._checked_addresses(host, port):
            try:
                return await self._sockets.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore2.ConnectError(f"the host {host} has no address")

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("an engine has no Unix socket")

    async def sleep(self, seconds: float) -> None:
        await self._sockets.sleep(seconds)

    async def _checked_addresses(self, host: str, port: int) -> list[str]:
        try:
            entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"the host {host} was not found") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        text = refused_address_text(host, addresses, self._networks, "TUNERY_DELIVERY_ALLOWED_NETWORKS")
        if text is not None:
            raise httpcore2.ConnectError(text)
        return addresses
