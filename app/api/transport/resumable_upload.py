"""The content of an upload as it streams in: kept piece by piece, so that a break costs at most the last one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.dependencies import Engines
from app.api.transport.content_range import AskedSpan
from app.api.transport.upload_io import batches, limited
from app.domain.uploads import MAX_PART_BYTES
from app.errors import BadRequest, RequestTimeout
from app.services.files import upload_content
from app.services.files.ingest import StagedFile
from app.services.files.rolling_digest import piece_digests
from app.services.files.upload_content import UploadCursor

PIECE_BYTES = MAX_PART_BYTES


async def receive_content(request: Request, engines: Engines, owner: str, writer: UploadCursor, span: AskedSpan) -> int:
    """Where the content ends now. What has arrived is kept when the client leaves or falls silent, too."""
    declared = request.headers.get("content-length")
    end = span.check(writer.total_bytes, None if declared is None else int(declared))
    chunks = limited(request, end - writer.start, lambda: _too_much(end))
    pieces = _Pieces(engines, owner, writer)
    try:
        there_bytes = await _receive(chunks, pieces)
    finally:
        pieces.discard()
    if there_bytes < end:
        text = f"The body ended at byte {there_bytes:,} of {end:,}; what came is kept, go on from there."
        raise BadRequest(text, "Content-Range", "upload_size_mismatch")
    return there_bytes


async def _receive(chunks: AsyncIterator[bytes], pieces: _Pieces) -> int:
    try:
        async for batch in batches(chunks):
            await pieces.write(batch)
    except (ClientDisconnect, RequestTimeout):
        await pieces.keep()
        raise
    return await pieces.keep()


class _Pieces:
    def __init__(self, engines: Engines, owner: str, writer: UploadCursor) -> None:
        self._engines = engines
        self._owner = owner
        self._writer = writer
        self._staged: StagedFile | None = None
        self._there_bytes = writer.start
        self._rolling = engines.digests.get_at(writer.upload_id, writer.start)

    async def write(self, batch: bytes) -> None:
        engines, rest = self._engines, batch
        while rest:
            if self._staged is None:
                self._staged = await engines.lanes.write(
                    StagedFile, engines.storage.staging, PIECE_BYTES, digests=piece_digests(self._rolling)
                )
            room = PIECE_BYTES - self._staged.size_bytes
            await engines.lanes.write(self._staged.write, rest[:room])
            rest = rest[room:]
            if self._staged.size_bytes == PIECE_BYTES:
                await self.keep()

    async def keep(self) -> int:
        """Store what is staged; where the content ends."""
        if self._staged is not None:
            engines, staged = self._engines, self._staged
            piece = await engines.lanes.store(
                self._owner,
                upload_content.add_piece,
                engines.sessions,
                engines.storage,
                self._writer,
                staged,
                self._there_bytes,
            )
            self._staged = None
            self._there_bytes += piece.bytes
            if self._rolling is not None:
                self._rolling = self._rolling.extend(piece.id, piece.bytes, staged.digests[-1])
                engines.digests.store(self._writer.upload_id, self._rolling)
        return self._there_bytes

    def discard(self) -> None:
        if self._staged is not None:
            self._staged.discard()


def _too_much(end: int) -> BadRequest:
    return BadRequest(
        f"The body goes on after byte {end:,}, where it had to end.", "Content-Range", "upload_size_mismatch"
    )
