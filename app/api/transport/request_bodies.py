"""Large request bodies: streams with a size limit, forms (multipart/form-data), and thread pools for their work.

A slow client holds a socket, a file and at most a megabyte of memory, never a thread or a database connection.
Writing, storing, finishing large files and parsing have separate thread pools: uploads never exhaust the threads of
other requests, hashing the bytes of one upload never waits for the disk flush of another, and a flush never waits for
the completion of a large file. A form has its fields in any order, and one file that is never held in memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.api.limits import FairLimiter
from app.domain.error_text.json_text import as_json, suggestion
from app.errors import BadRequest, RequestTimeout, TooLarge, UnknownParameter, UnsupportedEncoding

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

# Per call of a thread: large enough that switching threads costs little, small enough to hold in memory.
BATCH_BYTES = 1 << 20
WRITE_THREADS = 4  # hash and write; more threads only wait for the same disk
STORE_THREADS, STORE_THREADS_PER_KEY = 8, 6  # they wait for the disk, a bucket or PostgreSQL, which may stall
PARSE_THREADS = 2  # parse large JSON bodies; they share the interpreter with the event loop
MAX_INLINE_PARSE_BYTES = 16 << 10  # parsed in the event loop: at most some 3 ms; a thread costs 0.2 ms
UNENCODED = ("", "identity", "utf-8")  # some clients send the charset utf-8 in this header by mistake
MAX_SMALL_FILE_BYTES = 8 << 20  # hashed, checked and flushed within some tenths of a second
MAX_FIELD_BYTES = 64 << 10
MAX_FIELDS = 32
MAX_BOUNDARY_BYTES = 256  # the parser's limit; the standard has 70
MAX_FORM_OVERHEAD_BYTES = 64 << 10  # of a body beside its file, for an early refusal by Content-Length


class IoPools:
    """The thread pools for request bodies, and locks by name. One instance per process."""

    def __init__(self) -> None:
        self._writing = CapacityLimiter(WRITE_THREADS)
        self.storing = FairLimiter(STORE_THREADS, STORE_THREADS_PER_KEY)  # flush to the disk and insert the row
        self._finishing = FairLimiter(max(2, os.cpu_count() or 2))
        self._parsing = FairLimiter(PARSE_THREADS)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run milliseconds of hashing and writing in a thread."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._writing)

    def finishing(self, size_bytes: int) -> FairLimiter:
        """The threads for what follows the last byte. A large file takes seconds; small files have another pool."""
        return self.storing if size_bytes <= MAX_SMALL_FILE_BYTES else self._finishing

    async def parse(
        self,
        owner: str,
        size_bytes: int,
        work: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Parse or check a JSON text of `size_bytes`: a small one directly, a large one in a thread."""
        if size_bytes <= MAX_INLINE_PARSE_BYTES:
            return work(*args, **kwargs)
        return await self._parsing.run(owner, work, *args, **kwargs)

    def key_lock(self, name: str) -> asyncio.Lock:
        """The lock named `name`. It serializes a request with its retry after a client-side timeout."""
        return self._locks.setdefault(name, asyncio.Lock())


def refuse_compressed(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedEncoding for an encoded body (RFC 9110, 8.4).

    Bodies are stored and hashed as they arrive and never decompressed, so decompression bombs have no effect.
    """
    encodings = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    if not all(name in UNENCODED for name in encodings):
        raise UnsupportedEncoding(
            f"Content-Encoding: {as_json(headers['content-encoding'])} is not supported, only identity; send the body "
            "without compression",
            "Content-Encoding",
        )


async def limit_body(
    request: Request, max_bytes: int, refusal: Callable[[], TooLarge | BadRequest]
) -> AsyncIterator[bytes]:
    """Yield the body. Raises `refusal()` for more than `max_bytes`, UnsupportedEncoding for a compressed body.

    A Content-Length above `max_bytes` is refused before a byte is read.
    """
    refuse_compressed(request.headers)
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise refusal()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise refusal()
        yield chunk


async def rebatch(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in batches of about BATCH_BYTES, to switch threads rarely."""
    batch: list[bytes] = []
    size_bytes = 0
    try:
        async for chunk in chunks:
            batch.append(chunk)
            size_bytes += len(chunk)
            if size_bytes >= BATCH_BYTES:
                yield b"".join(batch)
                batch, size_bytes = [], 0
    except (ClientDisconnect, RequestTimeout):
        yield b"".join(batch)  # the caller keeps what arrived before a disconnect
        raise
    if batch:
        yield b"".join(batch)


@dataclass
class Form:
    """The text fields of a body, and the client's name for the file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    has_file: bool = False


async def read_form(
    io_pools: IoPools,
    content_type: str,
    body: AsyncIterator[bytes],
    file_field: str,
    fields: Collection[str],
    write: Callable[[memoryview], None],
) -> Form:
    """Pass the part named `file_field` to `write`, in a thread, and return the other fields.

    Raises BadRequest for anything but a complete body with that file and `fields`, and whatever `write` raises.
    """
    reader = _FormReader(_boundary(content_type), file_field, fields, write)
    async for batch in rebatch(body):
        await io_pools.write(reader.feed, batch)
    return reader.finish()


class _FormReader:
    def __init__(
        self, boundary: bytes, file_field: str, fields: Collection[str], write: Callable[[memoryview], None]
    ) -> None:
        self.form = Form()
        self._file_field = file_field
        self._allowed_fields = fields
        self._write = write
        self._is_complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._part_name = ""
        self._part_value = bytearray()
        self._parser = MultipartParser(boundary, self._callbacks())

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest(f"The multipart body is malformed: {error}.", code="invalid_multipart") from error

    def finish(self) -> Form:
        """The parsed form. Raises BadRequest for a truncated body, which has no closing boundary."""
        if not self._is_complete:
            raise BadRequest(
                "The multipart body ends before its closing boundary: the upload was interrupted.",
                code="invalid_multipart",
            )
        return self.form

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._part_value.clear()

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part_name = _text(options.get(b"name", b""))
        if self._part_name == self._file_field:
            self._begin_file(options.get(b"filename"))
        elif self._part_name not in self._allowed_fields:
            allowed = [self._file_field, *sorted(self._allowed_fields)]
            seen = as_json(self._part_name) + suggestion(self._part_name, allowed)
            raise UnknownParameter(f"unknown form field {seen}; known here: {', '.join(allowed)}", self._part_name)
        elif self._part_name in self.form.fields or len(self.form.fields) >= MAX_FIELDS:
            raise BadRequest(f"{self._part_name}: the form has this field twice; give it once", self._part_name)

    def _begin_file(self, filename: bytes | None) -> None:
        if self.form.has_file:
            raise BadRequest(f"{self._file_field}: the form has two files; send one file per upload", self._file_field)
        self.form.has_file = True
        self.form.filename = None if filename is None else _text(filename)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part_name == self._file_field:
            self._write(memoryview(data)[start:end])
            return
        self._part_value += data[start:end]
        if len(self._part_value) > MAX_FIELD_BYTES:
            raise BadRequest(f"{self._part_name}: longer than {MAX_FIELD_BYTES:,} bytes", self._part_name)

    def _on_part_end(self) -> None:
        if self._part_name == self._file_field:
            return
        text = _text(bytes(self._part_value))
        if "\x00" in text:
            raise BadRequest(f"{self._part_name}: contains a NUL character", self._part_name)
        self.form.fields[self._part_name] = text

    def _on_end(self) -> None:
        self._is_complete = True


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary: bytes = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise BadRequest(
            f"Send the file as multipart/form-data with a boundary (curl -F does), not {as_json(content_type, 100)}.",
            code="invalid_multipart",
        )
    return boundary


def _text(data: bytes) -> str:
    """Decode UTF-8, else Latin-1, which a few clients send."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
