"""The interface of storage, the same builtin errors from every implementation, and seekable readers.

The service makes the keys, never from a client's file name: letters, digits, dashes, underscores and dots, separated by
slashes. An object is immutable, is written once under a new key, and is stored completely or not at all.
"""

from __future__ import annotations

import errno
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol

from app.domain.storage_location import KEY


@dataclass(frozen=True)
class StoredObject:
    key: str
    size_bytes: int


class StorageError(OSError):
    """A remote storage cannot be used now. `strerror` says what was seen and what to do, as a phrase for a sentence.

    It contains no address and no name of a bucket, because users of the API read it; the log has the cause.
    `errno` is ENOSPC if the storage is full.
    """


class Storage(Protocol):
    """The operations; each may raise OSError, a remote storage StorageError."""

    staging: Path
    """A local directory for files before `put`; of local storage on the same filesystem, so that `put` is a rename."""

    def put(self, key: str, source: Path) -> StoredObject:
        """Move the file at `source` into storage, durably. After an error nothing is stored, and `source` exists."""

    def compose(self, key: str, parts: Sequence[str]) -> StoredObject:
        """Concatenate stored objects to a new one, without copying them through this process where that is possible;
        the `parts` may be deleted afterwards.

        Raises FileNotFoundError with the missing key, after which nothing is stored.
        """

    def open(self, key: str) -> BinaryIO:
        """A seekable reader of an object. Raises FileNotFoundError with the key."""

    def stat(self, key: str) -> StoredObject:
        """The size of an object. Raises FileNotFoundError with the key."""

    def delete(self, key: str) -> None:
        """Delete an object; no error if there is none."""

    def older_than(self, prefix: str, moment: float) -> Iterator[str]:
        """The keys below `prefix` of objects that were stored before `moment`, in seconds since 1970."""

    def delete_unfinished(self, moment: float) -> int:
        """Delete what was begun before `moment` and never became an object, outside `staging`; the number of them."""

    def check(self, size_bytes: int = 1) -> None:
        """Write, read and delete an object of `size_bytes`. Raises OSError, quickly for an unreachable server."""

    def download_url(self, key: str, headers: DownloadHeaders) -> str | None:
        """An address from which a client can download the object for some minutes; None if the API sends it itself."""


@dataclass(frozen=True)
class DownloadHeaders:
    content_type: str
    content_disposition: str


def check_key(key: str) -> str:
    """Raises ValueError for a key that could leave the storage's root."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a storage key")
    return key


def object_not_found(key: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such object", key)


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
