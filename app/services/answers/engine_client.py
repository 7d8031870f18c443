"""The HTTP client of engines: one pool of connections for an API process, without redirects, proxies or cookies."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit

import httpcore2

from app.domain.access.outbound_networks import Network, refused_address_text
from app.domain.answers.engine_answers import MAX_ANSWER_BYTES, engine_json
from app.settings import Settings


class CheckedNetwork(httpcore2.AnyIOBackend):
    """Connects only to addresses that the operator allows, as the delivery sender does.

    A project chooses the URLs of its engines, so they must not give access to servers in the operator's network. The
    host is resolved here, every address is checked, and the connection uses a checked address: a name that resolves
    differently a moment later (DNS rebinding) has no effect.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

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
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
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


CONNECT_SECONDS = 5.0
AWAY_SECONDS = 10.0  # a server that did not respond is tried last for so long
MAX_KEPT_CONNECTIONS = 100
KEPT_SECONDS = 4.0  # vLLM closes a connection that was idle for 5: a request sent at that moment would be lost
NETWORK_ERRORS = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
    OSError,
)


Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Parse(Protocol):
    """Runs `work` on a text of `size_bytes`; a large one outside the event loop, where owners share the threads."""

    async def __call__(
        self,
        owner: str,
        size_bytes: int,
        work: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result: ...


@dataclass(frozen=True)
class EngineServer:
    """One server of a delivery target. `served_model` is None for its base model, whose name the server lists."""

    target: str
    url: str
    served_model: str | None
    api_key: str | None
    problem: str | None = None  # why it cannot get a request


class EngineUnreachable(Exception):
    """The server cannot answer now; the message says why, without its address."""


class EngineClient:
    def __init__(self, settings: Settings, parse: Parse) -> None:
        self.parse = parse
        self._settings = settings
        self._away_until: dict[str, float] = {}

    @property
    def timeout_seconds(self) -> float:
        return self._settings.answer_timeout_seconds

    def in_order(self, servers: Sequence[EngineServer]) -> list[EngineServer]:
        """The servers in their order, those that did not respond lately at the end."""
        now = time.monotonic()
        return sorted(servers, key=lambda server: self._away_until.get(server.url, 0.0) > now)

    async def send(
        self, server: EngineServer, method: str, path: str, body: bytes | None = None, request_id: str = ""
    ) -> httpcore2.Response:
        """The response, whose body is not read yet; the caller closes it. Raises EngineUnreachable.

        The timeouts begin anew with every byte, so the headers as a whole have a limit too.
        """
        seconds = self.timeout_seconds
        timeouts = {"connect": CONNECT_SECONDS, "read": seconds, "write": seconds, "pool": CONNECT_SECONDS}
        if not server.url.startswith("https://") and not self._settings.delivery_allow_http:
            raise EngineUnreachable("the operator allows https only (TUNERY_DELIVERY_ALLOW_HTTP)")
        request = httpcore2.Request(
            method,
            server.url.rstrip("/") + path,
            headers=_headers(server, body, request_id),
            content=body,
            extensions={"timeout": timeouts},
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS + seconds):
                response = await self._pool.handle_async_request(request)
        except NETWORK_ERRORS as error:
            self._away_until[server.url] = time.monotonic() + AWAY_SECONDS
            raise EngineUnreachable(away_text(error, seconds)) from error
        self._away_until.pop(server.url, None)
        return response

    async def base_model(self, server: EngineServer) -> str:
        """The name under which a server serves its base model: its first. Raises EngineUnreachable."""
        response = await self.send(server, "GET", "/v1/models")
        content = await read_body(response, self.timeout_seconds)
        try:
            return await self.parse(server.url, len(content), _first_base_model, content)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineUnreachable(f"it lists no base model (status {response.status})") from error

    async def close(self) -> None:
        if "_pool" in self.__dict__:
            await self._pool.aclose()

    @cached_property
    def _pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=None,
            max_keepalive_connections=MAX_KEPT_CONNECTIONS,
            keepalive_expiry=KEPT_SECONDS,
            network_backend=CheckedNetwork(self._settings.delivery_networks),
        )


async def read_body(response: httpcore2.Response, timeout_seconds: float) -> bytes:
    """The whole body; closes the response. Raises EngineUnreachable."""
    content = bytearray()  # bytes would be copied for each chunk
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in response.aiter_stream():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise EngineUnreachable(f"its response is longer than {MAX_ANSWER_BYTES:,} bytes")
    except NETWORK_ERRORS as error:
        raise EngineUnreachable(away_text(error, timeout_seconds)) from error
    finally:
        await response.aclose()
    return bytes(content)


def _first_base_model(content: bytes) -> str:
    names = [str(model["id"]) for model in engine_json(content)["data"] if model.get("parent") is None]
    return names[0]  # a StopIteration of `next` would be a RuntimeError in a coroutine


def header(response: httpcore2.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


def away_text(error: BaseException, timeout_seconds: float) -> str:
    if isinstance(error, httpcore2.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, httpcore2.TimeoutException):
        return f"it sent nothing for {timeout_seconds:g} s"
    if isinstance(error, TimeoutError):
        return f"it sent no complete response in {timeout_seconds:g} s"
    return str(error) or "it closed the connection"


def _headers(server: EngineServer, body: bytes | None, request_id: str) -> list[tuple[bytes | str, bytes | str]]:
    headers: list[tuple[bytes | str, bytes | str]] = [
        ("host", urlsplit(server.url).netloc),
        ("accept-encoding", "identity"),
    ]
    if body is not None:
        headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
    if request_id:
        headers.append(("x-request-id", request_id))
    if server.api_key:
        headers.append(("authorization", f"Bearer {server.api_key}"))
    return headers
