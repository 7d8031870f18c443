"""Asynchronous client of the public API with the key of one session. Every failure is an ApiError."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

CONNECT_SECONDS = 3.0
RESPONSE_SECONDS = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NOT_MODIFIED = 304
UNAUTHORIZED = 401
MAX_CACHED_BYTES = 4 << 20  # of JSON, for each session; the objects take several times as much memory
MAX_CONNECTIONS = 200  # requests at once
CHECK_PROXIES = "Check any proxy between it and the dashboard."

Json = dict[str, Any]


class ApiError(Exception):
    """A refused or failed request; `status` is None if there was no response."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code

    @property
    def is_unreachable(self) -> bool:
        return self.status is None or self.status in (502, 503, 504)


def make_http(base_url: str, max_connections: int | None = MAX_CONNECTIONS) -> httpx2.AsyncClient:
    """Connections that all sessions share. Requests to this machine use no proxy of the environment."""
    return httpx2.AsyncClient(
        base_url=f"{base_url}/v1/",
        timeout=httpx2.Timeout(RESPONSE_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=max_connections, max_keepalive_connections=20),
        trust_env=httpx2.URL(base_url).host not in LOOPBACK,
        headers={"User-Agent": "tunery-web"},
    )


class ApiClient:
    """`streams` are connections for open responses: each page has one, which must not take the place of a request."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        api_key: str,
        on_unauthorized: Callable[[], None],
        streams: httpx2.AsyncClient | None = None,
    ) -> None:
        self._http = http
        self._streams = streams or http
        self._authorization = {"Authorization": f"Bearer {api_key}"}
        self._on_unauthorized = on_unauthorized
        self._cached: dict[str, tuple[str, Json, int]] = {}  # by URL: the ETag, the body and its bytes as JSON

    def forget_key(self) -> None:
        """Further requests of open pages are refused by the API."""
        self._authorization = {}
        self._cached.clear()

    async def get(self, path: str, **params: Any) -> Json:
        """An object. An unchanged one (by its ETag) comes from the cache of this client."""
        url = str(httpx2.URL(path, params=_without_none(params)))
        etag, body, _ = self._cached.get(url, (None, None, 0))
        headers = {"If-None-Match": etag} if etag else {}
        response = await self._request("GET", url, headers=headers)
        if response.status_code == NOT_MODIFIED and body is not None:
            return body
        found = _json(response)
        if new_etag := response.headers.get("etag"):
            self._keep(url, new_etag, found, len(response.content))
        return found

    def _keep(self, url: str, etag: str, body: Json, size_bytes: int) -> None:
        """Add a body; a full cache starts over with it, and a body that is larger than the cache is not kept."""
        self._cached[url] = (etag, body, size_bytes)
        if sum(size_bytes for _, _, size_bytes in self._cached.values()) > MAX_CACHED_BYTES:
            self._cached = {url: (etag, body, size_bytes)} if size_bytes <= MAX_CACHED_BYTES else {}

    async def text(self, path: str, **params: Any) -> str:
        return (await self._request("GET", path, params=_without_none(params))).text

    async def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_seconds: float = RESPONSE_SECONDS,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> Json:
        """With an `idempotency_key`, a repetition after a lost response returns what the first request created."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        request: Json = {"json": body, "params": _without_none(params), "timeout": timeout_seconds}
        return _json(await self._request("POST", path, headers=headers, **request))

    async def upload(self, content: Path, filename: str, fields: Mapping[str, str], timeout_seconds: float) -> Json:
        """Upload a file in one request. The other fields precede the content, so the server can reject it early."""
        with content.open("rb") as file:
            request: Json = {"data": fields, "files": {"file": (filename, file, "application/octet-stream")}}
            return _json(await self._request("POST", "files", timeout=timeout_seconds, **request))

    async def delete(self, path: str) -> Json:
        return _json(await self._request("DELETE", path))

    async def items(self, path: str, limit: int, **params: Any) -> list[Json]:
        """The first `limit` items of a list, requested in pages of at most 100."""
        found: list[Json] = []
        while len(found) < limit:
            page = await self.get(path, limit=min(100, limit - len(found)), **params)
            found += page["data"]
            if not page.get("has_more") or not page["data"]:
                break
            params["after"] = page["data"][-1]["id"]
        return found

    async def base_models(self) -> list[Json]:
        """Those that the key may fine-tune; the id of each is its name."""
        return [model for model in (await self.get("models"))["data"] if not model["id"].startswith("ft:")]

    async def put(self, path: str, content: bytes, headers: Mapping[str, str], timeout_seconds: float) -> Json:
        return _json(await self._request("PUT", path, content=content, headers=headers, timeout=timeout_seconds))

    async def head(self, path: str) -> Mapping[str, str]:
        return (await self._request("HEAD", path)).headers

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, read_seconds: float | None = None, **request: Any
    ) -> AsyncIterator[httpx2.Response]:
        """An open response, for downloads and server-sent events; `read_seconds` limits the pause between bytes."""
        headers = self._authorization | request.pop("headers", {})
        timeout = httpx2.Timeout(RESPONSE_SECONDS, connect=CONNECT_SECONDS, read=read_seconds)
        with _transport_errors(self._streams):
            async with self._streams.stream(method, path, headers=headers, timeout=timeout, **request) as response:
                if response.is_error:
                    await response.aread()
                    self._raise(response)
                yield response

    async def _request(self, method: str, path: str, **request: Any) -> httpx2.Response:
        headers = self._authorization | request.pop("headers", {})
        with _transport_errors(self._http):
            response = await self._http.request(method, path, headers=headers, **request)
        if response.is_error:
            self._raise(response)
        return response

    def _raise(self, response: httpx2.Response) -> None:
        if response.status_code == UNAUTHORIZED:
            self._on_unauthorized()
        try:
            error = json.loads(response.content)["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError):
            message, code = f"The API answered {response.status_code} without a message. {CHECK_PROXIES}", None
        raise ApiError(message, response.status_code, code)


@contextlib.contextmanager
def _transport_errors(http: httpx2.AsyncClient) -> Any:
    try:
        yield
    except httpx2.TimeoutException:
        raise ApiError(f"The API at {_root(http)} did not answer in time. Try again in a few seconds.") from None
    except httpx2.RequestError as error:  # of the connection, or of a body that cannot be decoded
        reason = str(error) or type(error).__name__
        raise ApiError(
            f"The API at {_root(http)} cannot be reached ({reason}). Check that it runs, then try again."
        ) from None


def _root(http: httpx2.AsyncClient) -> str:
    return str(http.base_url).rstrip("/").removesuffix("/v1")


def _json(response: httpx2.Response) -> Json:
    try:
        return dict(response.json())
    except (ValueError, TypeError):
        text = f"{response.url} returned no JSON. Check TUNERY_WEB_API_URL and any proxy in between."
        raise ApiError(text, response.status_code) from None


def _without_none(params: Mapping[str, Any]) -> Json:
    return {name: value for name, value in params.items() if value is not None}
