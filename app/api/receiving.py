"""Bodies of gigabytes: as a stream, with a limit on size, on threads of their own.

A client that trickles holds a socket, a file and at most a megabyte, never a thread or a database connection. Writing,
storing and finishing have lanes of their own, so that every other request finds a thread however many uploads there
are, and nobody's bytes wait to be hashed while somebody else's are flushed to the disk.
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

from app.errors import BadRequest, RequestTimeout, TooLarge

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

BATCH_BYTES = 1 << 20  # handed to a thread at a time: large enough that the hops cost nothing, small enough to hold
WRITERS = 4  # threads that hash and write; more of them only wait for the same disk
STORERS = 8  # threads that wait for the disk
COMPRESSIONS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress")
FINISHED_SOON_BYTES = 8 << 20  # hashed, checked and flushed within some tenths of a second


class Lanes:
    """Who may work at once, on bodies above all; built once per process."""

    def __init__(self) -> None:
        self._writing = CapacityLimiter(WRITERS)
        self._storing = CapacityLimiter(STORERS)
        self._finishing = CapacityLimiter(max(2, os.cpu_count() or 2))
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Milliseconds of hashing and writing."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._writing)

    async def store(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Flushing to the disk, and the row after it."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._storing)

    async def finish(
        self, size_bytes: int, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """What follows the last byte: for a large file seconds, which no small one waits for."""
        lane = self._storing if size_bytes <= FINISHED_SOON_BYTES else self._finishing
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=lane)

    def alone(self, name: str) -> asyncio.Lock:
        """One at a time by that name: a client that lost patience asks again while its first request still works."""
        return self._locks.setdefault(name, asyncio.Lock())


def refuse_compressed(headers: Mapping[str, str]) -> None:
    """Raises BadRequest: what is stored and hashed has to be what the client means, and no archive bomb."""
    encoding = headers.get("content-encoding", "")
    if encoding.strip().lower() in COMPRESSIONS:
        raise BadRequest(
            f"Content-Encoding: {encoding!r} is not taken; send the body as it is, without compressing it",
            "Content-Encoding",
            "unsupported_value",
        )


async def limited(
    request: Request, max_bytes: int, refusal: Callable[[], TooLarge | BadRequest]
) -> AsyncIterator[bytes]:
    """The body. Raises what `refusal` makes when there is too much of it, BadRequest for a compressed one.

    What Content-Length announces is refused before a byte is read.
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


async def batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces worth a thread's while."""
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
        yield b"".join(batch)  # what came before a break is worth keeping
        raise
    if batch:
        yield b"".join(batch)
