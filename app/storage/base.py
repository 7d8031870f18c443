"""The interface of storage: six operations, and the same builtin errors from every implementation.

The service makes the keys, never from a client's file name: letters, digits, dashes, underscores and dots, separated by
slashes. An object is immutable, and is stored completely or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class StoredObject:
    key: str
    size_bytes: int


class Storage(Protocol):
    staging: Path
    """A local directory for files before `put`; of local storage on the same filesystem, so that `put` is a rename."""

    def put(self, key: str, source: Path) -> StoredObject:
        """Move the file at `source` into storage, durably. Raises OSError (ENOSPC), after which nothing is stored."""

    def compose(self, key: str, parts: Sequence[str]) -> StoredObject:
        """Concatenate stored objects to a new one, without copying; the `parts` may be deleted afterwards.

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


def check_key(key: str) -> str:
    """Raises ValueError for a key that could leave the storage's root."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a storage key")
    return key
