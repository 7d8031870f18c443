"""An archive that is not stored: a tar that is assembled from stored objects while it is read."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

from app.storage.base import Storage
from app.system.tar_layout import tar_frames

BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ArchiveMember:
    name: str
    key: str
    size_bytes: int


def open_archive(storage: Storage, members: Sequence[ArchiveMember]) -> BinaryIO:
    """A buffered, seekable reader of the archive of `members`. Raises FileNotFoundError with the key of a missing one.

    It opens all members at once: one that is deleted during a download stays readable, as a stored archive would.
    """
    with ExitStack() as opened:
        contents = [opened.enter_context(storage.open(member.key)) for member in members]
        opened.pop_all()
    frames: list[BinaryIO] = [io.BytesIO(frame) for frame in tar_frames([(m.name, m.size_bytes) for m in members])]
    parts = [part for pair in zip(frames, contents, strict=False) for part in pair] + [frames[-1]]
    sizes = [len(frame.getbuffer()) for frame in frames]  # type: ignore[attr-defined]
    lengths = [size for pair in zip(sizes, (m.size_bytes for m in members), strict=False) for size in pair]
    return io.BufferedReader(ConcatenatedReader(parts, [*lengths, sizes[-1]]), BUFFER_BYTES)


class ConcatenatedReader(io.RawIOBase):
    """Reads files one after the other as one file; closes them."""

    def __init__(self, parts: Sequence[BinaryIO], sizes_bytes: Sequence[int]) -> None:
        self._parts = parts
        self._ends = list(accumulate(sizes_bytes))
        self._position = 0

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
        """Read at most to the end of the current part; the buffered reader calls again for more."""
        index = bisect_right(self._ends, self._position)
        if index == len(self._ends):
            return 0
        start, part = (self._ends[index - 1] if index else 0), self._parts[index]
        part.seek(self._position - start)
        data = part.read(min(len(buffer), self._ends[index] - self._position))
        if not data:
            raise OSError(f"a stored object is shorter than the archive that contains it, at byte {self._position:,}")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        for part in self._parts:
            part.close()
        super().close()
