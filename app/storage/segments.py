"""Objects of segments: a directory of hard links to the parts of an object, read as one file.

Gigabytes that were uploaded in parts are neither copied nor stored twice. The name of a segment is a dot and six
digits, and no key begins with a dot, so that such a directory is distinct from one that contains other objects.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from app.storage.readers import PartsReader

BUFFER_BYTES = 1 << 20
SEGMENT = re.compile(r"\.\d{6}")


def link_segments(directory: Path, sources: Sequence[Path]) -> int:
    """Create `directory` as an object of `sources` in this order; its size in bytes. Raises FileNotFoundError."""
    directory.mkdir()
    for number, source in enumerate(sources):
        os.link(source, directory / f".{number:06d}")
    return sum(path.stat().st_size for path in segments_of(directory))


def segments_of(directory: Path) -> list[Path]:
    """The segments in order; none if `directory` is no object."""
    return [directory / name for name in segment_names(os.listdir(directory))]


def segment_names(entries: Sequence[str]) -> list[str]:
    """The segments among the entries of a directory, in order; none if an entry is a key, so the directory no object.

    Other names that begin with a dot are files of other programs: rsync, NFS and editors leave some.
    """
    if not all(name.startswith(".") for name in entries):
        return []
    return sorted(name for name in entries if SEGMENT.fullmatch(name))


def open_segments(directory: Path) -> BinaryIO:
    """A buffered, seekable reader of the segments. Raises FileNotFoundError if `directory` has none."""
    paths = segments_of(directory)
    if not paths:
        raise FileNotFoundError(directory)
    return io.BufferedReader(SegmentReader(paths), BUFFER_BYTES)


class SegmentReader(PartsReader):
    """Reads segments as one file, with only one of them open at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__([path.stat().st_size for path in paths])
        self._paths = paths
        self._index = -1
        self._file: io.FileIO | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _read_part(self, index: int, offset: int, buffer: memoryview) -> int:
        file = self._segment(index)
        file.seek(offset)
        return file.readinto(buffer) or 0

    def _segment(self, index: int) -> io.FileIO:
        if self._file is None or index != self._index:
            if self._file is not None:
                self._file.close()
            self._file, self._index = io.FileIO(self._paths[index]), index
        return self._file
