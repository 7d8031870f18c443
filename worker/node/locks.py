"""File locks that the kernel releases when their last holder has exited: no stale lock can exist."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def try_lock(path: Path) -> Iterator[int | None]:
    """Hold the lock while the block lasts; yields its descriptor, or None if another process holds the lock.

    A child that inherits the descriptor keeps holding the lock, even after this process has exited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except BlockingIOError:
            is_held = False
        yield descriptor if is_held else None
    finally:
        os.close(descriptor)
