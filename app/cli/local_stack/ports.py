"""Ports and URLs of the local service."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from app.cli.local_stack.errors import CannotStart

MAX_ANSWER_BYTES = 4 << 20
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def free_port(host: str, port: int) -> int:
    """Check that a port is free and return it; 0 selects any. Raises CannotStart. Checked before anything starts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise CannotStart(
            f"Cannot listen on {host} port {port}: {error}. Choose another --port (0 selects a free one) or --host."
        ) from None


def base_url(host: str, port: int) -> str:
    """The URL for clients on this machine."""
    reachable = ANY_ADDRESS.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def http_get(
    url: str, path: str, headers: Mapping[str, str] | None = None, timeout_seconds: float = 10.0
) -> tuple[int | None, str]:
    """(status, body) of a request without a proxy; (None, error text) if there is no response."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout_seconds)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return None, str(error) or type(error).__name__
    finally:
        connection.close()


def without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)
