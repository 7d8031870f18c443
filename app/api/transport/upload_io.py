"""Input and output of large bodies: streams with a size limit, and thread pools for their work.

A slow client holds a socket, a file and at most a megabyte of memory, never a thread or a database connection. Writing,
storing and finishing have separate thread pools: uploads never exhaust the threads of other requests, and hashing the
bytes of one upload never waits for the disk flush of another.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.limits import FairLimiter
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest, RequestTimeout, TooLarge, UnsupportedEncoding

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

# Per call of a thread: large enough that switching threads costs little, small enough to hold in memory.
BATCH_BYTES = 1 << 20
WRITE_THREADS = 4  # hash and write; more threads only wait for the same disk
STORE_THREADS = 8  # flush to the disk
PARSE_THREADS = 2  # parse large JSON bodies; they share the interpreter with the event loop
MAX_INLINE_PARSE_BYTES = 16 << 10  # parsed in the event loop: at most some 3 ms; a thread costs 0.2 ms
UNENCODED = ("", "identity", "utf-8")  # some clients send the charset utf-8 in this header by mistake
MAX_SMALL_FILE_BYTES = 8 << 20  # hashed, checked and flushed within some tenths of a second


class IoPools:
    """The thread pools for request bodies, and locks by name. One instance per process."""

    def __init__(self) -> None:
        self._writing = CapacityLimiter(WRITE_THREADS)
        self._storing = FairLimiter(STORE_THREADS)
        self._finishing = FairLimiter(max(2, os.cpu_count() or 2))
        self._parsing = FairLimiter(PARSE_THREADS)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run milliseconds of hashing and writing in a thread."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._writing)

    async def store(
        self, owner: str, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Flush to the disk and insert the row, in a thread. API keys (`owner`) share the pool fairly."""
        return await self._storing.run(owner, work, *args, **kwargs)

    async def finish(
        self,
        owner: str,
        size_bytes: int,
        work: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run what follows the last byte, in a thread. A large file takes seconds; small files have another pool."""
        pool = self._storing if size_bytes <= MAX_SMALL_FILE_BYTES else self._finishing
        return await pool.run(owner, work, *args, **kwargs)

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
