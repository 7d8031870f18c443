"""An object of several files: a directory of hard links to the parts it was composed of, read as one.

Gigabytes that came in parts are neither copied nor stored twice. A segment's name begins with a dot, which no key does,
so such a directory is never taken for one that holds other objects.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

BUFFER_BYTES = 1 << 20
SEGMENT_PREFIX = "."


def link_segments(directory: Path, sources: Sequence[Path]) -> int:
    """Make `directory` an object of `sources` in this order; its size. Raises FileNotFoundError of a source."""
    directory.mkdir()
    for number, source in enumerate(sources):
        os.link(source, directory / f"{SEGMENT_PREFIX}{number:06d}")
    return sum(path.stat().st_size for path in segments_of(directory))


def segments_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.name.startswith(SEGMENT_PREFIX))


def open_segments(directory: Path) -> BinaryIO:
    """Raises FileNotFoundError for a directory that holds no segment."""
    paths = segments_of(directory)
    if not paths:
        raise FileNotFoundError(directory)
    return io.BufferedReader(SegmentReader(paths), BUFFER_BYTES)


class SegmentReader(io.RawIOBase):
    """One segment is open at a time, however many there are."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._ends = list(accumulate(path.stat().st_size for path in paths))
        self._position = 0
        self._index = -1
        self._file: io.FileIO | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        if base + offset < 0:
            raise ValueError(f"a negative position: {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Up to the end of the segment that the position is in; a buffered reader asks again."""
        index = bisect_right(self._ends, self._position)
        if index == len(self._ends):
            return 0
        file = self._segment(index)
        file.seek(self._position - (self._ends[index - 1] if index else 0))
        count = file.readinto(buffer) or 0
        self._position += count
        return count

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _segment(self, index: int) -> io.FileIO:
        if self._file is None or index != self._index:
            if self._file is not None:
                self._file.close()
            self._file, self._index = io.FileIO(self._paths[index]), index
        return self._file
