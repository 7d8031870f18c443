"""One POST to an address that somebody else chose.

The name is resolved here, every address it has is looked at, and the connection goes to the very one that was: a name
that answers differently a moment later changes nothing. No redirects, no proxies, no cookies; time and the bytes
of an answer are limited, whatever the other side does.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from app.domain.access.outbound_networks import Network, is_allowed, parse_address

READ_BYTES = 1_024
Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Limits:
    connect_seconds: float
    total_seconds: float
    allow_http: bool = False
    networks: Sequence[Network] = ()


@dataclass(frozen=True)
class Answer:
    """`error` says in words why there is no `status`."""

    duration_ms: int
    status: int | None = None
    retry_after: str | None = None
    content: bytes = b""  # its beginning
    error: str | None = None


class RefusedAddressError(Exception):
    """The name leads to where we don't go."""


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"{host} was not found ({error.strerror or error})") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def post(url: str, headers: Mapping[str, str], content: bytes, limits: Limits, resolve: Resolve = resolve) -> Answer:
    """Never raises for what the other side does; the answer says it."""
    began = time.monotonic()
    try:
        status, retry_after, beginning = _post(url, headers, content, limits, _Network(limits, began, resolve))
        return Answer(_since(began), status, retry_after, beginning)
    except RefusedAddressError as refused:
        error = str(refused)
    except httpcore2.TimeoutException:
        error = f"no answer within {limits.total_seconds:g} s"
    except ssl.SSLError as failed:
        error = f"TLS: {failed.reason or failed}"
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.UnsupportedProtocol, OSError) as failed:
        error = f"{_words(failed)}"
    return Answer(_since(began), error=error[:500])


def _post(
    url: str, headers: Mapping[str, str], content: bytes, limits: Limits, network: _Network
) -> tuple[int, str | None, bytes]:
    if urlsplit(url).scheme != "https" and not limits.allow_http:
        raise RefusedAddressError("the operator allows https only (TUNERY_WEBHOOK_ALLOW_HTTP)")
    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    with (
        httpcore2.ConnectionPool(ssl_context=_tls(), network_backend=network) as pool,
        pool.stream("POST", url, headers=given, content=content) as response,
    ):
        sent = {name.lower(): value for name, value in response.headers}
        retry_after = sent[b"retry-after"].decode("latin-1") if b"retry-after" in sent else None
        return response.status, retry_after, _beginning(response)


def _beginning(response: httpcore2.Response) -> bytes:
    """The status has been said: an answer that breaks off or trickles is an answer all the same."""
    found = b""
    try:
        for chunk in response.iter_stream():
            found += chunk
            if len(found) >= READ_BYTES:
                break
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        pass
    return found[:READ_BYTES]


class _Network(httpcore2.NetworkBackend):
    """Connects to checked addresses only; nothing takes longer than what is left of the time."""

    def __init__(self, limits: Limits, began: float, resolve: Resolve) -> None:
        self._limits = limits
        self._deadline = began + limits.total_seconds
        self._resolve = resolve
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = self._checked(host, port)
        seconds = min(timeout or inf, self._limits.connect_seconds / len(addresses))
        failed: Exception | None = None
        for address in addresses:
            try:
                wait = left(self._deadline, seconds)
                stream = self._sockets.connect_tcp(address, port, wait, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
            else:
                return _Stream(stream, self._deadline)
        assert failed is not None
        if isinstance(failed, httpcore2.ConnectTimeout):
            raise httpcore2.ConnectError(f"no connection within {self._limits.connect_seconds:g} s") from failed
        raise failed

    def _checked(self, host: str, port: int) -> list[str]:
        """All or nothing: a name with one private address among public ones is up to something."""
        literal = parse_address(host)
        addresses = [str(literal)] if literal is not None else self._resolve(host, port)
        for address in addresses:
            parsed = parse_address(address)
            if parsed is None or not is_allowed(parsed, self._limits.networks):
                raise RefusedAddressError(
                    f"{host} leads to {address}, which is not a public address; the operator can allow private ones "
                    "(TUNERY_WEBHOOK_ALLOWED_NETWORKS)"
                )
        return addresses[:4]


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """The certificate must be the name's, although the connection went to an address."""
        wait = left(self._deadline, timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, wait), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def left(deadline: float, at_most_seconds: float | None = None) -> float:
    """Seconds until the deadline. Raises httpcore2.ReadTimeout when there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore2.ReadTimeout("the time is over")
    return seconds if at_most_seconds is None else min(seconds, at_most_seconds)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Loading the certificates takes longer than a request. An operator's own authority: SSL_CERT_FILE."""
    return httpcore2.default_ssl_context()


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
