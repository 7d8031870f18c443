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

from app.api.fair_limiter import FairLimiter
from app.domain.error_text.json_text import shown
from app.errors import BadRequest, RequestTimeout, TooLarge, UnsupportedEncoding

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

BATCH_BYTES = 1 << 20  # handed to a thread at a time: large enough that the hops cost nothing, small enough to hold
WRITERS = 4  # threads that hash and write; more of them only wait for the same disk
STORERS = 8  # threads that wait for the disk
PARSERS = 2  # threads that parse large JSON bodies; they share the interpreter with the event loop
PARSED_HERE_BYTES = 16 << 10  # at most some 3 ms; a thread costs 0.2
UNENCODED = ("", "identity", "utf-8")  # the last is a charset, which some clients send in this header by mistake
FINISHED_SOON_BYTES = 8 << 20  # hashed, checked and flushed within some tenths of a second


class Lanes:
    """Who may work at once, on bodies above all; built once per process."""

    def __init__(self) -> None:
        self._writing = CapacityLimiter(WRITERS)
        self._storing = FairLimiter(STORERS)
        self._finishing = FairLimiter(max(2, os.cpu_count() or 2))
        self._parsing = FairLimiter(PARSERS)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Milliseconds of hashing and writing."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._writing)

    async def store(
        self, owner: str, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Flushing to the disk, and the row after it. API keys (`owner`) take turns."""
        return await self._storing.run(owner, work, *args, **kwargs)

    async def finish(
        self,
        owner: str,
        size_bytes: int,
        work: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """What follows the last byte: for a large file seconds, which no small one waits for."""
        lane = self._storing if size_bytes <= FINISHED_SOON_BYTES else self._finishing
        return await lane.run(owner, work, *args, **kwargs)

    async def parse(self, owner: str, work: Callable[[bytes], Result], data: bytes) -> Result:
        """Apply `work` to a JSON body: a small one here, a large one in a thread, beside which other requests go on."""
        if len(data) <= PARSED_HERE_BYTES:
            return work(data)
        return await self._parsing.run(owner, work, data)

    def alone(self, name: str) -> asyncio.Lock:
        """One at a time by that name: a client that lost patience asks again while its first request still works."""
        return self._locks.setdefault(name, asyncio.Lock())


def refuse_compressed(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedEncoding for an encoded body (RFC 9110, 8.4): it is stored and hashed as it comes.

    Nothing is ever decompressed, so no archive bomb works either.
    """
    encodings = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    if not all(name in UNENCODED for name in encodings):
        raise UnsupportedEncoding(
            f"Content-Encoding: {shown(headers['content-encoding'])} is not taken, only identity; send the body "
            "as it is, without compressing it",
            "Content-Encoding",
        )


async def limited(
    request: Request, max_bytes: int, refusal: Callable[[], TooLarge | BadRequest]
) -> AsyncIterator[bytes]:
    """The body. Raises what `refusal` makes when there is too much of it, UnsupportedEncoding for a compressed one.

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
