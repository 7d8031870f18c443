"""The response with a stored file: Range, ETag and 304, digests, never compressed, constant memory.

A thread reads CHUNK_BYTES at a time; the event loop only passes buffers on.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.transport.byte_ranges import matches_etag, requested_range
from app.db.tables import File
from app.services.files import files
from app.storage import DownloadHeaders, Storage

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
