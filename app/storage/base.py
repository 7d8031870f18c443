"""The interface of storage, and the same builtin errors from every implementation.

The service makes the keys, never from a client's file name: letters, digits, dashes, underscores and dots, separated by
slashes. An object is immutable, is written once under a new key, and is stored completely or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
