"""Where bytes live: six verbs, and the same builtin errors from every implementation.

A key is ours, never a client's file name: lower-case words, digits, dashes and dots, separated by slashes. An object is
immutable: it is there whole or not at all.
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
    """A local directory for files on their way in; for local storage on the same filesystem, so `put` is a rename."""

    def put(self, key: str, source: Path) -> StoredObject:
        """Take over the file at `source` (gone afterwards), durably. Raises OSError (ENOSPC) and leaves nothing."""

    def compose(self, key: str, parts: Sequence[str]) -> StoredObject:
        """One object of the bytes of others that were put, one after the other, without copying any; they may be
        deleted afterwards. Raises FileNotFoundError with the missing key in it, and leaves nothing.
        """

    def open(self, key: str) -> BinaryIO:
        """A seekable reader. Raises FileNotFoundError with the key in it."""

    def stat(self, key: str) -> StoredObject:
        """Raises FileNotFoundError with the key in it."""

    def delete(self, key: str) -> None:
        """An object that is not there is no error: deleting twice is deleting once."""

    def older_than(self, prefix: str, moment: float) -> Iterator[str]:
        """The key of every object below `prefix` that was stored before `moment`, in seconds since 1970."""


def check_key(key: str) -> str:
    """Raises ValueError for a key that could leave the storage's root."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a storage key")
    return key
