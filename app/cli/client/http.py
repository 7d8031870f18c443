"""A client of the public API, with one path for everything that can go wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import httpx2

from app.cli.client.service_discovery import Address
from app.cli.errors import CliError, Missing, NotAllowed, Unreachable, UsageError

CONNECT_SECONDS = 5
ANSWER_SECONDS = 120  # an upload of 512 MiB is hashed and flushed to disk before it is answered
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NOT_MODIFIED = 304
NO_KEY = "No API key: set TUNERY_API_KEY, or name the --data-dir of a `tunery up` that runs on this machine."
KINDS = {403: NotAllowed, 404: Missing, 408: Unreachable, 502: Unreachable, 503: Unreachable, 504: Unreachable}

Json = dict[str, Any]


class Client:
    def __init__(self, address: Address) -> None:
        self.address = address
        self._http = httpx2.Client(
            base_url=f"{address.base_url}/v1/",
            headers={"Authorization": f"Bearer {address.api_key}"} if address.api_key else {},
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            # A proxy from the environment is for the world outside, never for this machine.
            trust_env=httpx2.URL(address.base_url).host not in LOOPBACK,
            follow_redirects=True,
        )

    def get(self, path: str, **params: Any) -> Json:
        return self._ask("GET", path, params=params)

    def text(self, path: str, **params: Any) -> str:
        return self._send("GET", path, params=params).text

    def get_if_changed(self, path: str, etag: str | None, wait_seconds: float) -> tuple[Json | None, str | None]:
        """An object and its ETag; None for the object as long as it is the one that `etag` was of.

        A server that knows how waits `wait_seconds` for it to change; an older one answers at once.
        """
        if etag is None:
            response = self._send("GET", path)
        else:
            response = self._send("GET", path, params={"wait": wait_seconds}, headers={"If-None-Match": etag})
        if response.status_code == NOT_MODIFIED:
            return None, etag
        return self._json(response), response.headers.get("etag")

    def post(self, path: str, body: Mapping[str, Any] | None = None, **params: Any) -> Json:
        return self._ask("POST", path, json=body, params=params)

    def delete(self, path: str) -> Json:
        return self._ask("DELETE", path)

    def pages(self, path: str, limit: int, **params: Any) -> Iterator[Json]:
        """Every item of a list, page by page, for as long as the caller asks for more."""
        while True:
            page = self.get(path, limit=limit, **params)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            params["after"] = page["data"][-1]["id"]

    def first(self, path: str, limit: int | None, max_page: int, **params: Any) -> tuple[list[Json], bool]:
        """The first `limit` items of a list, or all of them, and whether there are more."""
        wanted = None if limit is None else limit + 1
        found = list(islice(self.pages(path, min(wanted or max_page, max_page), **params), wanted))
        return found[:limit], len(found) > len(found[:limit])

    def upload(self, path: Path, purpose: str, on_bytes: Callable[[int], None]) -> Json:
        """`purpose` goes first: the server decides on it before it takes the bytes."""
        with path.open("rb") as file:
            content = (path.name, _Counted(file, on_bytes), "application/jsonl")
            return self._ask("POST", "files", data={"purpose": purpose}, files={"file": content})

    def put_file(self, url: str, path: Path, first_byte: int, size_bytes: int, on_bytes: Callable[[int], None]) -> Json:
        """Send a file from `first_byte` to its end."""
        headers = {
            "Content-Length": str(size_bytes - first_byte),
            "Content-Range": f"bytes {first_byte}-{size_bytes - 1}/{size_bytes}",
        }
        with path.open("rb") as file:
            file.seek(first_byte)
            return self._ask("PUT", url, content=iter(_Counted(file, on_bytes)), headers=headers)

    def head(self, path: str) -> Mapping[str, str]:
        with self._answers():
            response = self._http.head(path)
        if response.is_error:  # without a body: GET has the sentence
            self.get(path.removesuffix("/content"))
            raise _stranger(response, self.address)
        return response.headers

    @contextlib.contextmanager
    def download(self, path: str, first_byte: int = 0) -> Iterator[httpx2.Response]:
        """The open answer; 206 when it starts at `first_byte`, 200 when it starts over."""
        headers = {"Range": f"bytes={first_byte}-"} if first_byte else {}
        with self._answers(), self._http.stream("GET", path, headers=headers) as response:
            if response.is_error:
                response.read()
                raise _refusal(response, self.address)
            yield response

    def close(self) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, **request: Any) -> Json:
        return self._json(self._send(method, path, **request))

    def _send(self, method: str, path: str, **request: Any) -> httpx2.Response:
        with self._answers():
            response = self._http.request(method, path, **request)
        if response.is_error:
            raise _refusal(response, self.address)
        return response

    def _json(self, response: httpx2.Response) -> Json:
        try:
            return dict(response.json())
        except (ValueError, TypeError):
            raise _stranger(response, self.address) from None

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        base_url = self.address.base_url
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unreachable(
                f"No Tunery at {base_url} ({error}); start it with `tunery up`, "
                "or say where it is with --base-url or TUNERY_BASE_URL."
            ) from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"The connection to {base_url} broke off ({reason}). Try again.") from None


class _Counted:
    """A file that tells how much of it was read. httpx2 learns the length from `fileno`."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self._on_bytes(len(chunk))
        return chunk

    def fileno(self) -> int:
        return self._file.fileno()

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(1 << 16), b"")


def _refusal(response: httpx2.Response, address: Address) -> CliError:
    """The server's own sentence, as the error that its status means to a script."""
    try:
        error = json.loads(response.content)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        return _stranger(response, address)
    if response.status_code == 401:
        return NotAllowed(f"{message} It came from {address.key_from}." if address.api_key else NO_KEY)
    kind = KINDS.get(response.status_code) or (CliError if response.is_server_error else UsageError)
    return kind(message)


def _stranger(response: httpx2.Response, address: Address) -> CliError:
    kind = response.headers.get("content-type", "no content type")
    return CliError(
        f"{address.base_url} answered {response.status_code} ({kind}), which is not Tunery speaking. "
        "Check --base-url and any proxy in between."
    )
