"""Send one POST to a URL that a user chose, safe against server-side request forgery (SSRF).

The host name is resolved here, every address is checked, and the connection uses a checked address, so a name that
resolves differently a moment later (DNS rebinding) has no effect. No redirects, proxies or cookies; the time and the
bytes of a response are limited, whatever the server does.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from app.domain.access.outbound_networks import Network, parse_address, refused_address_text

MAX_RESPONSE_BYTES = 1_024
MAX_ADDRESSES = 4
MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class PostLimits:
    connect_seconds: float
    total_seconds: float
    allow_http: bool = False
    networks: Sequence[Network] = ()


@dataclass(frozen=True)
class WebhookResponse:
    """The response of an endpoint; without a `status`, `error` is the reason."""

    duration_ms: int
    status: int | None = None
    retry_after: str | None = None
    date: str | None = None  # when the endpoint responded, by its own clock
    content: bytes = b""  # the first `MAX_RESPONSE_BYTES` of the body
    error: str | None = None


class RefusedAddressError(Exception):
    """The host or the scheme of the URL is not allowed."""


def resolve(host: str, port: int) -> list[str]:
    """Every address of a host name. Raises OSError."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label without letters, or with more than 63
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"the host {host} was not found ({reason})") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def post(url: str, headers: Mapping[str, str], content: bytes, limits: PostLimits) -> WebhookResponse:
    """Send the request. Never raises for errors of the network or the server; the response has them."""
    began = time.monotonic()
    try:
        return _post(url, headers, content, limits, began)
    except RefusedAddressError as refused:
        error = str(refused)
    except httpcore2.TimeoutException:
        error = f"no response within {limits.total_seconds:g} s"
    except ssl.SSLError as failed:
        error = f"TLS: {failed.reason or failed}"
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.UnsupportedProtocol, OSError) as failed:
        error = str(failed) or type(failed).__name__
    return WebhookResponse(_milliseconds_since(began), error=error[:MAX_ERROR_CHARACTERS])


def _post(url: str, headers: Mapping[str, str], content: bytes, limits: PostLimits, began: float) -> WebhookResponse:
    """Raises what `post` catches."""
    if urlsplit(url).scheme != "https" and not limits.allow_http:
        raise RefusedAddressError(
            "only https URLs are allowed; the operator can allow http (TUNERY_WEBHOOK_ALLOW_HTTP)"
        )
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    network = _CheckedNetwork(limits, began)
    with (
        httpcore2.ConnectionPool(ssl_context=_tls_context(), network_backend=network) as pool,
        pool.stream("POST", url, headers=raw_headers, content=content) as response,
    ):
        response_headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        retry_after, date = (response_headers.get(name) for name in (b"retry-after", b"date"))
        prefix = _read_prefix(response)
        return WebhookResponse(_milliseconds_since(began), response.status, retry_after, date, prefix)


def _read_prefix(response: httpcore2.Response) -> bytes:
    """The first bytes of the body. The status is known by now, so a body that breaks off or stalls is no error."""
    prefix = b""
    try:
        for chunk in response.iter_stream():
            prefix += chunk
            if len(prefix) >= MAX_RESPONSE_BYTES:
                break
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        pass
    return prefix[:MAX_RESPONSE_BYTES]


class _CheckedNetwork(httpcore2.NetworkBackend):
    """Connects to checked addresses only; no operation takes longer than the remaining time."""

    def __init__(self, limits: PostLimits, began: float) -> None:
        self._limits = limits
        self._deadline = began + limits.total_seconds
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = self._checked_addresses(host, port)
        seconds_per_address = min(timeout or inf, self._limits.connect_seconds / len(addresses))
        failed: Exception | None = None
        for address in addresses:
            try:
                wait = remaining_seconds(self._deadline, seconds_per_address)
                stream = self._sockets.connect_tcp(address, port, wait, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
            else:
                return _Stream(stream, self._deadline)
        assert failed is not None
        if isinstance(failed, httpcore2.ConnectTimeout):
            raise httpcore2.ConnectError(f"no connection within {self._limits.connect_seconds:g} s") from failed
        raise failed

    def _checked_addresses(self, host: str, port: int) -> list[str]:
        """Resolve a host. Raises RefusedAddressError."""
        literal = parse_address(host)
        addresses = [str(literal)] if literal is not None else resolve(host, port)
        setting = "TUNERY_WEBHOOK_ALLOWED_NETWORKS"
        if (text := refused_address_text(host, addresses, self._limits.networks, setting)) is not None:
            raise RefusedAddressError(text)
        return addresses[:MAX_ADDRESSES]


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, remaining_seconds(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, remaining_seconds(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Start TLS. The certificate must be valid for the host name, although the connection is to an address."""
        wait = remaining_seconds(self._deadline, timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, wait), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def remaining_seconds(deadline: float, max_seconds: float | None = None) -> float:
    """Seconds until the deadline, `max_seconds` at most. Raises httpcore2.ReadTimeout after the deadline."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore2.ReadTimeout("the total time is over")
    return seconds if max_seconds is None else min(seconds, max_seconds)


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    """The TLS context, cached because loading the certificates takes longer than a request.

    An operator can add a certificate authority with SSL_CERT_FILE.
    """
    return httpcore2.default_ssl_context()


def _milliseconds_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
