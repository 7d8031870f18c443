"""Have the disk begin with what was just written, while more arrives: a later flush has little left to wait for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


def begin_writeback(descriptor: int, start: int, size_bytes: int) -> None:
    """Never waits for the disk and promises nothing: what must be durable is flushed. Only Linux has it."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, start, size_bytes, SYNC_FILE_RANGE_WRITE)


def _from_libc() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _from_libc()
