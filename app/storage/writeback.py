"""Early writeback: the kernel writes dirty pages while more data arrives, so that the final fsync is short."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


def begin_writeback(descriptor: int, start: int, size_bytes: int) -> None:
    """Start to write a range of a file to disk, without waiting. Durability still needs fsync. Only on Linux."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, start, size_bytes, SYNC_FILE_RANGE_WRITE)


def _from_libc() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _from_libc()
