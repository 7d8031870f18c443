"""The response with a stored file: Range, ETag and 304, digests, never compressed, constant memory.

Range and conditional requests are those of RFC 9110, 13 and 14, for an immutable object.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.db.tables import File
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import RangeNotSatisfiable
from app.services.files import files
from app.storage import DownloadHeaders, Storage

RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
MAX_DIGITS = 18  # a longer position is beyond every object, and int() refuses thousands of digits
OUT_OF_BOUNDS = 10**MAX_DIGITS
CHUNK_BYTES = (
    3 << 19
)  # 1.5 MiB, to switch threads rarely; divisible by three, so that chunks of base64 join without padding
MEDIA_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown; charset=utf-8",
    ".tar": "application/x-tar",
}


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` to `end` (exclusive) of `total`."""

    start: int
    end: int
    total: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.total}"


def matches_etag(headers: Mapping[str, str], etag: str) -> bool:
    """Whether If-None-Match holds `etag`: the response is then a 304."""
    etags = {name.strip().removeprefix("W/") for name in headers.get("if-none-match", "").split(",")}
    return etag in etags or "*" in etags


def requested_range(headers: Mapping[str, str], etag: str, total: int) -> ByteRange | None:
    """The bytes that a Range header requests (RFC 9110, 14.1.2 and 14.2); None for the whole object.

    A unit other than bytes and an If-Range with another ETag require the whole object. Several ranges may be ignored,
    and are. Raises RangeNotSatisfiable for a single range that is invalid or selects nothing.
    """
    unit, equals, ranges = headers.get("range", "").partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    if headers.get("if-range", etag).strip() != etag:
        return None
    requested = [
        text for text in (text.strip(" \t") for text in ranges.split(",")) if text
    ]  # a list may have empty items
    if len(requested) > 1:
        return None
    return _single_range(requested[0] if requested else "", total)


def _single_range(text: str, total: int) -> ByteRange | None:
    match = RANGE.fullmatch(text)
    if match is None or text == "-":
        message = f"Range: {as_json(text)} is not a range such as bytes=0-1023, bytes=1024- or bytes=-512"
        raise RangeNotSatisfiable(message, total)
    first, last = (_position(digits) for digits in match.groups())
    if first is None:
        start, end = max(0, total - (last or 0)), total
        if last and not total:
            return None  # a suffix of an empty object is satisfiable, but has no Content-Range
    else:
        start, end = first, total if last is None else min(total, last + 1)
    if start >= end:
        message = f"Range: bytes={unquoted(text)} selects nothing: the object has {total:,} bytes"
        raise RangeNotSatisfiable(message, total)
    return ByteRange(start, end, total)


def _position(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0")
    return OUT_OF_BOUNDS if len(significant) > MAX_DIGITS else int(significant or "0")


def content_response(storage: Storage, file: File, request: Request, as_base64: bool = False) -> Response:
    """The response with the stored content of `file`, or a redirect to it. Raises NotFound, RangeNotSatisfiable."""
    is_stored = file.archive_members is None
    is_plain = is_stored and request.method == "GET" and not as_base64 and "if-range" not in request.headers
    if is_plain and not matches_etag(request.headers, _etag(file)):  # a bucket's ETags are others
        headers = _headers(file, _etag(file))
        url = storage.download_url(
            file.storage_key, DownloadHeaders(headers["Content-Type"], headers["Content-Disposition"])
        )
        if url is not None:
            return RedirectResponse(url, headers={"Cache-Control": "no-store", "Vary": "Authorization"})
    return file_response(file, files.open_content(storage, file), request, as_base64)


def file_response(file: File, reader: BinaryIO, request: Request, as_base64: bool = False) -> Response:
    """The response for a request of `file`. It owns `reader` and closes it. Raises RangeNotSatisfiable."""
    try:
        return _base64_response(file, reader, request.headers) if as_base64 else _file_response(file, reader, request)
    except BaseException:
        reader.close()
        raise


def _file_response(file: File, reader: BinaryIO, request: Request) -> Response:
    etag = _etag(file)
    digest = f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:"
    headers = _headers(file, etag) | {"Accept-Ranges": "bytes", "Repr-Digest": digest}
    if matches_etag(request.headers, etag):
        reader.close()
        return Response(status_code=304, headers=headers)
    # RFC 9110, 14.2: Range applies to GET only
    byte_range = requested_range(request.headers, etag, file.bytes) if request.method == "GET" else None
    if byte_range is None:
        headers |= {"Content-Length": str(file.bytes), "Content-Digest": digest}
        return _FileStream(reader, 0, file.bytes, 200, headers)
    headers |= {"Content-Length": str(byte_range.length), "Content-Range": byte_range.content_range}
    return _FileStream(reader, byte_range.start, byte_range.length, 206, headers)


def _base64_response(file: File, reader: BinaryIO, request_headers: Mapping[str, str]) -> Response:
    """The file in base64, as OpenAI serves results files: a representation with its own ETag, without ranges."""
    etag = f'"base64-sha256-{file.sha256}"'
    headers = _headers(file, etag)
    if matches_etag(request_headers, etag):
        reader.close()
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Length": str(4 * -(-file.bytes // 3)), "Content-Type": "text/plain; charset=ascii"}
    return _FileStream(reader, 0, file.bytes, 200, headers, as_base64=True)


def _etag(file: File) -> str:
    return f'"sha256-{file.sha256}"'


def _headers(file: File, etag: str) -> dict[str, str]:
    return {
        "Content-Type": MEDIA_TYPES.get(PurePosixPath(file.filename).suffix.lower(), "application/octet-stream"),
        "Content-Disposition": _attachment(file.filename),
        "ETag": etag,
        "Cache-Control": "private, max-age=86400, immutable",
        "Vary": "Authorization",
    }


def _attachment(filename: str) -> str:
    """A Content-Disposition for download. RFC 5987 encodes every name; the ASCII name is the fallback."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


class _FileStream(StreamingResponse):
    """Stops reading when the client disconnects, and always closes the reader."""

    def __init__(
        self,
        reader: BinaryIO,
        start: int,
        length: int,
        status: int,
        headers: Mapping[str, str],
        as_base64: bool = False,
    ) -> None:
        super().__init__(_chunks(reader, start, length, as_base64), status, headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "HEAD":
                await Response(status_code=self.status_code, headers=self.headers)(scope, receive, send)
            else:
                # Before the headers, so that a disk or bucket that cannot be read is an error response
                first = await anext(aiter(self.body_iterator), b"")
                self.body_iterator = _prepended(first, self.body_iterator)
                await super().__call__(scope, receive, send)
        finally:
            self._reader.close()


async def _prepended(first: Any, rest: AsyncIterable[Any]) -> AsyncIterator[Any]:
    yield first
    async for chunk in rest:
        yield chunk


async def _chunks(reader: BinaryIO, start: int, length: int, as_base64: bool) -> AsyncIterator[bytes]:
    await run_in_threadpool(reader.seek, start)
    while length:
        chunk = await run_in_threadpool(_read, reader, min(length, CHUNK_BYTES))
        length -= len(chunk)
        yield base64.b64encode(chunk) if as_base64 else chunk


def _read(reader: BinaryIO, size: int) -> bytes:
    """Read exactly `size` bytes; one call of a reader may return fewer. Raises RuntimeError at an early end of file."""
    data = reader.read(size)
    while len(data) < size:
        more = reader.read(size - len(data))
        if not more:
            raise RuntimeError(f"a stored object is {size - len(data):,} bytes shorter than its row in the database")
        data += more
    return data
