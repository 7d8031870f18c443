"""Real servers for everybody's tests, in a temporary directory that PostgreSQL's account can reach.

pytest's own `tmp_path` is 0700 all the way up, which keeps that account out when the tests run as root.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from app.cli.local_stack.servers.postgres import LocalPostgres
from app.cli.local_stack.servers.valkey import LocalValkey, as_redis_py

__all__ = ["as_redis_py", "open_directory", "start_postgres", "start_valkey"]


def start_postgres() -> tuple[str, Callable[[], None]]:
    """An empty database `tunery` without durability: the SQLAlchemy URL, and how to stop it."""
    held = contextlib.ExitStack()
    server = LocalPostgres(held.enter_context(open_directory()) / "pg", throwaway=True)
    return _start(held, server)


def start_valkey() -> tuple[str, Callable[[], None]]:
    """An empty Valkey: the URL as Celery wants it (`as_redis_py` turns it for redis-py), and how to stop it."""
    held = contextlib.ExitStack()
    server = LocalValkey(held.enter_context(open_directory()) / "vk")
    return _start(held, server)


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary directory which anybody may pass through and only we may list."""
    directory = Path(tempfile.mkdtemp(prefix="tunery-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(held: contextlib.ExitStack, server: LocalPostgres | LocalValkey) -> tuple[str, Callable[[], None]]:
    held.callback(server.stop)
    try:
        return server.start(), held.close
    except BaseException:
        held.close()
        raise
