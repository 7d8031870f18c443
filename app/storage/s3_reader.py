"""A seekable reader of an object in a bucket: one request for a range, which is repeated from where it broke off."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError

from app.storage.base import StorageError
from app.storage.readers import SeekableReader

if TYPE_CHECKING:
    from botocore.response import StreamingBody

MAX_BREAKS = 5  # consecutive broken responses without a byte between them


class ObjectReader(SeekableReader):
    """Reads from `open_at(position)`, which opens a response that begins there."""

    def __init__(self, open_at: Callable[[int], StreamingBody], size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._open_at = open_at
        self._body: StreamingBody | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        before = self._position
        if super().seek(offset, whence) != before:
            self._drop()
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read at most `len(buffer)` bytes. Raises what `open_at` raises, StorageError for responses that end early."""
        if self._position >= self._size_bytes or not len(buffer):
            return 0
        for _ in range(MAX_BREAKS):
            try:
                self._body = self._body or self._open_at(self._position)
                count = self._body.readinto(buffer)  # type: ignore[arg-type]  # the stubs ask for a file
            except BotoCoreError:
                count = 0
            if count:
                self._position += count
                return count
            self._drop()  # a client that reads slowly, or a restarted server: the connection was closed
        text = f"the response of the bucket's server ends at byte {self._position:,} of {self._size_bytes:,}"
        raise StorageError(errno.EIO, text)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
