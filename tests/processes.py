"""Processes that tests start: whether they run, and their end with that of the tests."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil

from app.system.host import die_with_parent


def is_alive(pid: int | None) -> bool:
    """Whether the process runs; a zombie does not, which a container may never reap."""
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def dies_with_tests() -> Callable[[], object]:
    """A `preexec_fn` for servers: without it, tests that are killed leave them running. Linux only."""
    pid = os.getpid()
    return lambda: die_with_parent(pid)
