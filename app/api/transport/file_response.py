"""A stored file as a response: Range, ETag and 304, digests, never compressed, constant memory.

Read in a thread, a megabyte or two at a time: the event loop only hands buffers on.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import quote

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.transport.byte_ranges import is_known, requested_span
from app.db.tables import File

CHUNK_BYTES = 3 << 19  # 1.5 MiB: fewer hops; divisible by three, so that chunks of base64 join without padding
MEDIA_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown; charset=utf-8",
    ".tar": "application/x-tar",
}


def file_response(file: File, reader: BinaryIO, request: Request, as_base64: bool = False) -> Response:
    """Takes `reader` over and closes it. Raises RangeNotSatisfiable."""
    try:
        return _base64_response(file, reader, request.headers) if as_base64 else _file_response(file, reader, request)
    except BaseException:
        reader.close()
        raise


def _file_response(file: File, reader: BinaryIO, request: Request) -> Response:
    etag = f'"sha256-{file.sha256}"'
    digest = f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:"
    headers = _headers(file, etag) | {"Accept-Ranges": "bytes", "Repr-Digest": digest}
    if is_known(request.headers, etag):
        reader.close()
        return Response(status_code=304, headers=headers)
    # RFC 9110, 14.2: a Range counts with GET only
    span = requested_span(request.headers, etag, file.bytes) if request.method == "GET" else None
    if span is None:
        headers |= {"Content-Length": str(file.bytes), "Content-Digest": digest}
        return _Stream(reader, 0, file.bytes, 200, headers)
    headers |= {"Content-Length": str(span.length), "Content-Range": span.content_range}
    return _Stream(reader, span.start, span.length, 206, headers)


def _base64_response(file: File, reader: BinaryIO, asked: Mapping[str, str]) -> Response:
    """What OpenAI served for results files. Another representation, so another ETag; whole only."""
    etag = f'"base64-sha256-{file.sha256}"'
    headers = _headers(file, etag)
    if is_known(asked, etag):
        reader.close()
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Length": str(4 * -(-file.bytes // 3)), "Content-Type": "text/plain; charset=ascii"}
    return _Stream(reader, 0, file.bytes, 200, headers, as_base64=True)


def _headers(file: File, etag: str) -> dict[str, str]:
    return {
        "Content-Type": MEDIA_TYPES.get(PurePosixPath(file.filename).suffix.lower(), "application/octet-stream"),
        "Content-Disposition": _attachment(file.filename),
        "ETag": etag,
        "Cache-Control": "private, max-age=86400, immutable",
        "Vary": "Authorization",
    }


def _attachment(filename: str) -> str:
    """Never shown in the browser; RFC 5987 carries every name, the plain one is for what can't read it."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


class _Stream(StreamingResponse):
    """Stops reading when the client leaves, and closes the reader in every case."""

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
                await super().__call__(scope, receive, send)
        finally:
            self._reader.close()


async def _chunks(reader: BinaryIO, start: int, length: int, as_base64: bool) -> AsyncIterator[bytes]:
    await run_in_threadpool(reader.seek, start)
    while length:
        chunk = await run_in_threadpool(_read, reader, min(length, CHUNK_BYTES))
        length -= len(chunk)
        yield base64.b64encode(chunk) if as_base64 else chunk


def _read(reader: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes: a reader over the network may give fewer at a time."""
    data = reader.read(size)
    while len(data) < size:
        more = reader.read(size - len(data))
        if not more:
            raise RuntimeError(f"a stored object is {size - len(data):,} bytes shorter than its row says")
        data += more
    return data
