"""An archive that is not stored: a tar that is assembled from stored objects while it is read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from app.storage.base import PartsReader, Storage
from app.system.artifact_directory import tar_frames

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


class ConcatenatedReader(PartsReader):
    """Reads files one after the other as one file; closes them."""

    def __init__(self, parts: Sequence[BinaryIO], sizes_bytes: Sequence[int]) -> None:
        super().__init__(sizes_bytes)
        self._parts = parts

    def close(self) -> None:
        for part in self._parts:
            part.close()
        super().close()

    def _read_part(self, index: int, offset: int, buffer: memoryview) -> int:
        part = self._parts[index]
        part.seek(offset)
        data = part.read(len(buffer))
        if not data:
            raise OSError(f"a stored object is shorter than the archive that contains it, at byte {self._position:,}")
        buffer[: len(data)] = data
        return len(data)
