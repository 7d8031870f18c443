"""Seekable raw readers: the position, and objects that consist of parts."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class SeekableReader(io.RawIOBase):
    """A reader that knows its size and its position; a subclass reads at `_position` and moves it."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        if position < 0:
            raise ValueError(f"a negative position: {position}")
        self._position = position
        return position


class PartsReader(SeekableReader):
    """Reads parts of known sizes as one file; a subclass reads within one part."""

    def __init__(self, sizes_bytes: Sequence[int]) -> None:
        self._ends = list(accumulate(sizes_bytes))
        super().__init__(self._ends[-1])

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read at most to the end of the current part; the buffered reader calls again for more."""
        index = bisect_right(self._ends, self._position)
        if index == len(self._ends):
            return 0
        start, end = (self._ends[index - 1] if index else 0), self._ends[index]
        within_part = memoryview(buffer)[: end - self._position]
        count = self._read_part(index, self._position - start, within_part)
        self._position += count
        return count

    def _read_part(self, index: int, offset: int, buffer: memoryview) -> int:
        """Read bytes of part `index` from `offset` into `buffer`; their number."""
        raise NotImplementedError
