"""HTTP client of the public API. Every failure is raised as a CliError."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO

import httpx2

from app.cli.client.service_discovery import ServiceAddress
from app.cli.errors import AccessDenied, CliError, ServiceUnreachable, error_class
from app.domain.error_text.json_text import as_json
from app.domain.files import MIME_TYPE, completion_seconds

CONNECT_TIMEOUT_SECONDS = 5
RESPONSE_TIMEOUT_SECONDS = 120  # the server hashes an upload of 512 MiB and flushes it to disk before it responds
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NOT_MODIFIED = 304
BLOCK_BYTES = 1 << 16
EVENT_STREAM = "text/event-stream"
END_OF_STREAM = "[DONE]"
MISSING_KEY_MESSAGE = (
    "No API key: use `tunery login`, set TUNERY_API_KEY, or give the --data-dir of a running `tunery up` on this "
    "machine. If no admin key is left, `tunery keys create --database` makes one on the server."
)
Json = dict[str, Any]


class Client:
    def __init__(self, address: ServiceAddress) -> None:
        self.address = address
        self._http = httpx2.Client(
            base_url=f"{address.base_url}/v1/",
            headers={"Authorization": f"Bearer {address.api_key}"} if address.api_key else {},
            timeout=httpx2.Timeout(RESPONSE_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            # Requests to this machine never use a proxy of the environment.
            trust_env=httpx2.URL(address.base_url).host not in LOOPBACK,
            follow_redirects=True,
        )

    def get(self, path: str, **params: Any) -> Json:
        return self._request_json("GET", path, params=params)

    def text(self, path: str, **params: Any) -> str:
        return self._request("GET", path, params=params).text

    def get_if_changed(self, path: str, etag: str | None, wait_seconds: float) -> tuple[Json | None, str | None]:
        """An object and its ETag, or None and `etag` if the object has not changed.

        The server waits up to `wait_seconds` for a change; a version without long polling responds at once.
        """
        if etag is None:
            response = self._request("GET", path)
        else:
            response = self._request("GET", path, params={"wait": wait_seconds}, headers={"If-None-Match": etag})
        if response.status_code == NOT_MODIFIED:
            return None, etag
        return self._json(response), response.headers.get("etag")

    def post(self, path: str, body: Mapping[str, Any] | None = None, **params: Any) -> Json:
        return self._request_json("POST", path, json=body, params=params)

    def post_once(self, path: str, body: Mapping[str, Any], idempotency_key: str) -> Json:
        """Post with a key: a repetition returns the first response, and creates nothing."""
        return self._request_json("POST", path, json=body, headers={"Idempotency-Key": idempotency_key})

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Json]:
        """The chunks of a streamed chat completion. An error in the middle is raised as one before it."""
        with self._open("POST", path, json=body) as response:
            if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
                raise self._unexpected_response(response)
            for line in _lines_of(response):
                data = line.removeprefix("data:").strip()
                if data == END_OF_STREAM:
                    return
                if line.startswith("data:"):
                    yield _chunk_of(data)
        raise CliError("The answer ended before its last part. Ask again.")

    def delete(self, path: str) -> Json:
        return self._request_json("DELETE", path)

    def pages(self, path: str, limit: int | None = 100, **params: Any) -> Iterator[Json]:
        """Iterate over all items of a list; `limit` is the page size (None: it has one page), requested as needed."""
        while True:
            page = self.get(path, limit=limit, **params)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            params["after"] = page["data"][-1]["id"]

    def first_items(self, path: str, limit: int | None, max_page: int = 100, **params: Any) -> tuple[list[Json], bool]:
        """The first `limit` items of a list (None: all), and whether the list has more."""
        count = None if limit is None else limit + 1
        items = list(islice(self.pages(path, min(count or max_page, max_page), **params), count))
        return items[:limit], len(items) > len(items[:limit])

    def upload(
        self, file: BinaryIO, filename: str, purpose: str, expires_after: Json | None, fields: Json, size_bytes: int
    ) -> Json:
        """Upload a file in one request. The other fields precede the content, so the server can reject it early."""
        expiry = {f"expires_after[{name}]": value for name, value in (expires_after or {}).items()}
        request: Json = {"data": {"purpose": purpose} | fields | expiry, "files": {"file": (filename, file, MIME_TYPE)}}
        return self._request_json("POST", "files", timeout=_completion(size_bytes), **request)

    def put_file(self, url: str, file: BinaryIO, first_byte: int, size_bytes: int) -> Json:
        """Upload a file from `first_byte` to its end."""
        headers = {
            "Content-Length": str(size_bytes - first_byte),
            "Content-Range": f"bytes {first_byte}-{size_bytes - 1}/{size_bytes}",
        }
        file.seek(first_byte)
        content = iter(lambda: file.read(BLOCK_BYTES), b"")
        return self._request_json("PUT", url, content=content, headers=headers, timeout=_completion(size_bytes))

    def complete_upload(self, url: str, size_bytes: int) -> Json:
        """Let the server check an upload of which it has all bytes."""
        return self._request_json("POST", url, json={}, timeout=_completion(size_bytes))

    def download(self, path: str, first_byte: int = 0) -> contextlib.AbstractContextManager[httpx2.Response]:
        """The open response: status 206 if it starts at `first_byte`, 200 if it starts at byte 0."""
        return self._open("GET", path, headers={"Range": f"bytes={first_byte}-"} if first_byte else {})

    def failed_checks(self) -> dict[str, str]:
        """What /readyz reports, which responds without PostgreSQL: {check: reason}. Empty if it does not respond."""
        try:
            checks = self._http.get(f"{self.address.base_url}/readyz").json()["checks"]
            return {name: str(check["detail"]) for name, check in checks.items() if not check["ok"]}
        except (httpx2.HTTPError, ValueError, LookupError, TypeError):
            return {}

    def close(self) -> None:
        self._http.close()

    def _request_json(self, method: str, path: str, **request: Any) -> Json:
        return self._json(self._request(method, path, **request))

    def _request(self, method: str, path: str, **request: Any) -> httpx2.Response:
        with self._open(method, path, **request) as response:
            response.read()
        return response

    @contextlib.contextmanager
    def _open(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, **request: Any
    ) -> Iterator[httpx2.Response]:
        """The open response, whose body was not read yet. Raises CliError for an error status. None is not sent."""
        query = {name: value for name, value in (params or {}).items() if value is not None}
        with self._transport_errors(), self._http.stream(method, path, params=query, **request) as response:
            if response.is_error:
                response.read()
                raise self._error_of(response)
            yield response

    def _json(self, response: httpx2.Response) -> Json:
        try:
            return dict(response.json())
        except (ValueError, TypeError):
            raise self._unexpected_response(response) from None

    def _error_of(self, response: httpx2.Response) -> CliError:
        """The error of a response: the server's message, with the exit code that its status maps to."""
        try:
            error = json.loads(response.content)["error"]
            message = str(error["message"])
        except (ValueError, KeyError, TypeError):
            return self._unexpected_response(response)
        if response.status_code == 401:
            source = self.address.key_source
            return AccessDenied(f"{message} The key is from {source}." if self.address.api_key else MISSING_KEY_MESSAGE)
        made = error_class(response.status_code)(message)
        made.code, made.param = error.get("code"), error.get("param")
        return made

    def _unexpected_response(self, response: httpx2.Response) -> CliError:
        content_type = response.headers.get("content-type", "no content type")
        return CliError(
            f"{self.address.base_url} answered {response.status_code} ({content_type}), which is not a response of "
            "Tunery. Check --base-url and any proxy in between."
        )

    @contextlib.contextmanager
    def _transport_errors(self) -> Iterator[None]:
        """Raise ServiceUnreachable for errors of the connection."""
        base_url = self.address.base_url
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ServiceUnreachable(
                f"Cannot connect to Tunery at {base_url} ({error}). Start it with `tunery up`, "
                "or set its URL by `tunery login`, --base-url or TUNERY_BASE_URL."
            ) from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServiceUnreachable(f"Lost the connection to {base_url} ({reason}). Try again.") from None


def _lines_of(response: httpx2.Response) -> Iterator[str]:
    """The lines of an event stream. `iter_lines` would also end them at characters that a JSON text may contain."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def _chunk_of(data: str) -> Json:
    """The chunk that an event has. Raises CliError for an error of the server, and for anything else."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and (error := event.get("error")):
        raise CliError(str(error.get("message") or error) if isinstance(error, dict) else str(error))
    choices = event.get("choices") if isinstance(event, dict) else None
    if not isinstance(choices, list) or not all(
        isinstance(choice, dict) and isinstance(choice.get("delta"), dict | None) for choice in choices
    ):
        raise CliError(
            f"The answer has an event that is not a chunk of a chat completion: {as_json(data, 80)}. Ask again; if it "
            "stays so, check the engine that serves the model, and any proxy before it."
        )
    return dict(event)


def _completion(size_bytes: int) -> httpx2.Timeout:
    seconds = max(RESPONSE_TIMEOUT_SECONDS, completion_seconds(size_bytes))
    return httpx2.Timeout(seconds, connect=CONNECT_TIMEOUT_SECONDS)
