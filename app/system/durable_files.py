"""Write files so that they survive a crash, and copy bytes while they are hashed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Protocol

CHUNK_BYTES = 1 << 20


class ReadableFile(Protocol):
    def read(self, size: int, /) -> bytes: ...


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_and_hash(source: ReadableFile, target: IO[bytes] | None = None) -> tuple[int, str]:
    """Read `source` to its end, into `target` if there is one: (size in bytes, SHA-256)."""
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
        if target is not None:
            target.write(chunk)
    return size_bytes, digest.hexdigest()
