"""Resumable uploads: the content is stored in chunks as it arrives, so that a disconnect loses at most the last one.

The Content-Range header of a request names the bytes of the upload that its body holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.dependencies import AppState
from app.api.transport.request_bodies import limit_body, rebatch
from app.db.tables import Upload
from app.domain.error_text.json_text import as_json
from app.domain.files import MAX_PART_BYTES
from app.errors import BadRequest, RequestTimeout
from app.services.files import uploads
from app.services.files.files import StagedFile
from app.services.files.upload_completion import piece_digests

PATTERN = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
CHUNK_BYTES = MAX_PART_BYTES


@dataclass(frozen=True)
class ContentRange:
    """Bytes `start` to `end` (exclusive) of `total`. All None without a header: the whole content."""

    start: int | None = None
    end: int | None = None
    total: int | None = None

    def check(self, total_bytes: int, content_length: int | None) -> int:
        """The offset at which the body has to end, for an upload declared with `total_bytes`.

        Raises BadRequest if header, declaration and Content-Length contradict each other.
        """
        if self.total not in (None, total_bytes):
            raise _error(f"the total is {self.total:,} bytes, but the upload was declared with {total_bytes:,}")
        end = total_bytes if self.end is None else self.end
        if end > total_bytes:
            raise _error(f"the range ends at byte {end - 1:,}, but the upload was declared with {total_bytes:,} bytes")
        expected_bytes = end - (self.start or 0)
        if content_length not in (None, expected_bytes):
            source = "by its Content-Range" if self.end is not None else "by the declared size of the upload"
            text = f"The body has {content_length:,} bytes, but must have {expected_bytes:,} {source}."
            raise BadRequest(text, "Content-Range", "upload_size_mismatch")
        return end


def parse_content_range(headers: Mapping[str, str]) -> ContentRange:
    """Raises BadRequest for a header that is not one range of bytes."""
    header = headers.get("content-range")
    if header is None:
        return ContentRange()
    match = PATTERN.fullmatch(header.strip())
    if match is None:
        raise _error(f"{as_json(header)} is not one range such as bytes 1048576-2097151/2097152")
    start, last = int(match[1]), int(match[2])
    if last < start:
        raise _error(f"{as_json(header)} ends before it begins")
    return ContentRange(start, last + 1, None if match[3] == "*" else int(match[3]))


def _error(problem: str) -> BadRequest:
    return BadRequest(f"Content-Range: {problem}", "Content-Range")


async def receive_content(
    request: Request, app_state: AppState, owner: str, upload: Upload, content_range: ContentRange
) -> int:
    """Store the body and return the number of bytes stored. A disconnect or timeout keeps what has arrived."""
    declared_length = request.headers.get("content-length")
    end = content_range.check(upload.bytes, None if declared_length is None else int(declared_length))
    body = limit_body(request, end - (content_range.start or 0), lambda: _body_too_long(end))
    chunks = ChunkWriter(app_state, owner, upload, content_range.start or 0)
    try:
        try:
            async for batch in rebatch(body):
                await chunks.write(batch)
        except (ClientDisconnect, RequestTimeout):
            await chunks.flush()
            raise
        stored_bytes = await chunks.flush()
    finally:
        chunks.discard()
    if stored_bytes < end:
        text = (
            f"The body ended at byte {stored_bytes:,} of {end:,}. The received bytes are stored: continue from there."
        )
        raise BadRequest(text, "Content-Range", "upload_size_mismatch")
    return stored_bytes


class ChunkWriter:
    """Stages the content in chunks of CHUNK_BYTES and stores each full one."""

    def __init__(self, app_state: AppState, owner: str, upload: Upload, start: int) -> None:
        self._app_state = app_state
        self._owner = owner
        self._upload = upload
        self._staged: StagedFile | None = None
        self._stored_bytes = start
        self._digest = app_state.upload_digests.get_at(upload.id, start)

    async def write(self, batch: bytes) -> None:
        io_pools = self._app_state.io_pools
        while batch:
            if self._staged is None:
                self._staged = await io_pools.write(
                    StagedFile, self._app_state.storage.staging, CHUNK_BYTES, digests=piece_digests(self._digest)
                )
            free_bytes = CHUNK_BYTES - self._staged.size_bytes
            await io_pools.write(self._staged.write, batch[:free_bytes])
            batch = batch[free_bytes:]
            if self._staged.size_bytes == CHUNK_BYTES:
                await self.flush()

    async def flush(self) -> int:
        """Store the staged chunk. Returns the number of bytes stored so far."""
        if self._staged is not None:
            app_state, staged = self._app_state, self._staged
            piece = await app_state.io_pools.storing.run(
                self._owner,
                uploads.add_piece,
                app_state.sessions,
                app_state.storage,
                self._upload,
                staged,
                self._stored_bytes,
            )
            self._staged = None
            self._stored_bytes += piece.bytes
            if self._digest is not None:
                self._digest = self._digest.extend(piece.id, piece.bytes, staged.digests[-1])
                app_state.upload_digests.store(self._upload.id, self._digest)
        return self._stored_bytes

    def discard(self) -> None:
        """Delete the staged chunk, if there is one."""
        if self._staged is not None:
            self._staged.discard()


def _body_too_long(end: int) -> BadRequest:
    return BadRequest(f"The body continues after byte {end:,}, its end.", "Content-Range", "upload_size_mismatch")
