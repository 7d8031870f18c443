"""The layout of an adapter's archive: an uncompressed tar whose bytes depend only on names and contents of its files.

Sorted names, mode 0644, time 0, owner 0 (decision 10). Everything but the contents follows from names and sizes, so the
archive need not be stored: its parts are computed, and the contents are read where they are.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

PREFIX = "adapter"  # the directory in the archive
CHUNK_BYTES = 1 << 20


def tar_frames(members: Sequence[tuple[str, int]]) -> list[bytes]:
    """What stands before each (name, size in bytes) and after the last one: n + 1 texts, headers and padding."""
    frames, padding, position = [], b"", 0
    for name, size_bytes in members:
        info = tarfile.TarInfo(f"{PREFIX}/{name}")
        info.size, info.mode, info.mtime = size_bytes, 0o644, 0
        frames.append(padding + info.tobuf(tarfile.PAX_FORMAT))
        position += len(frames[-1]) + size_bytes
        padding = bytes(-size_bytes % tarfile.BLOCKSIZE)
    end = padding + bytes(2 * tarfile.BLOCKSIZE)
    return [*frames, end + bytes(-(position + len(end)) % tarfile.RECORDSIZE)]


def describe_archive(directory: Path) -> tuple[int, str]:
    """(size in bytes, SHA-256) of the archive of a directory of plain files, without writing it. Raises OSError."""
    paths = sorted(directory.iterdir())
    frames = tar_frames([(path.name, path.stat().st_size) for path in paths])
    digest, size_bytes = hashlib.sha256(), 0
    for frame, path in zip(frames, [*paths, None], strict=True):
        digest.update(frame)
        size_bytes += len(frame)
        if path is not None:
            size_bytes += path.stat().st_size
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
    return size_bytes, digest.hexdigest()
