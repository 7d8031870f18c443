"""Files: written so that they survive a crash, copied while they are hashed, and those of a base model's directory.

These must be regular, inside the directory, and of a bounded size: a FIFO or a device has no end, and a link may lead
to any file of the host.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Protocol

CHUNK_BYTES = 1 << 20
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
MAX_TEXT_BYTES = 64 << 20  # of a file that is read at once; the index of 100,000 tensors has 10 MB
MAX_TOKENIZER_BYTES = 256 << 20  # Gemma's has 33 MB
TEXTS = (".json", ".jinja")  # no larger than a tokenizer; a sparse file of 4 TB would be hashed for an hour


@dataclass(frozen=True)
class ObjectDigest:
    size_bytes: int
    sha256: str


class ReadableFile(Protocol):
    def read(self, size: int, /) -> bytes: ...


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_and_hash(
    source: ReadableFile, target: IO[bytes] | None = None, on_chunk: Callable[[], object] = lambda: None
) -> ObjectDigest:
    """Read `source` to its end, into `target` if there is one; its size and SHA-256.

    `on_chunk` is called for each part that was read.
    """
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
        if target is not None:
            target.write(chunk)
        on_chunk()
    return ObjectDigest(size_bytes, digest.hexdigest())


def begin_writeback(descriptor: int, start: int, size_bytes: int) -> None:
    """Start to write a range of a file to disk, without waiting, so that the final fsync is short. Only on Linux."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, start, size_bytes, SYNC_FILE_RANGE_WRITE)


def open_regular(path: Path) -> BufferedReader:
    """Open a file of a base model. Raises OSError for one that is not regular or leads out of its directory."""
    _check(path, os.stat(path))  # before it is opened, which has an effect on some devices
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check(path, os.fstat(file.fileno()))  # it may have been replaced
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Raises OSError, also for a file with more bytes."""
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes", path.name)
    return content


def irregular_files(directory: Path) -> list[str]:
    """What is wrong with entries that are not regular files inside the directory, or texts that are too large.

    Subdirectories are not read.
    """
    problems = []
    for path in sorted(directory.iterdir()):
        try:
            status = os.stat(path)
            if not stat.S_ISDIR(status.st_mode):
                _check(path, status)
            if path.suffix in TEXTS and status.st_size > MAX_TOKENIZER_BYTES:
                problems.append(f"{path.name} has more than {MAX_TOKENIZER_BYTES:,} bytes")
        except OSError as error:
            problems.append(f"{path.name} cannot be read: {error.strerror}")
    return problems


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path.name)
    if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in _places(path.parent.resolve())):
        raise OSError(errno.EINVAL, "it is a link that leads out of the directory", path.name)


def _places(directory: Path) -> tuple[Path, ...]:
    """The directory, and the blobs to which the files of a snapshot in a hub's cache link."""
    return (directory, directory.parents[1] / "blobs") if directory.parent.name == "snapshots" else (directory,)


def _from_libc() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _from_libc()
