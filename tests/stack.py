"""Real servers for tests, in a temporary directory that PostgreSQL's account can access.

pytest's `tmp_path` and its parents have mode 0700, which excludes that account when the tests run as root.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import NullPool, create_engine, make_url, text

from app.cli.local_stack.servers import LocalPostgres, LocalServer, LocalValkey
from app.trial_queue import as_redis_py

THROWAWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}  # a crash loses the data

__all__ = ["THROWAWAY", "as_redis_py", "open_directory", "start_postgres", "start_valkey", "temporary_database"]


def start_postgres() -> tuple[str, Callable[[], None]]:
    """Start an empty database `tunery` without durability; return the SQLAlchemy URL and a function that stops it."""
    resources = contextlib.ExitStack()
    server = LocalPostgres(resources.enter_context(open_directory()) / "pg", **THROWAWAY)
    return _start(resources, server)


def start_valkey() -> tuple[str, Callable[[], None]]:
    """Start an empty Valkey; return its URL for Celery (`as_redis_py` converts it) and a function that stops it."""
    resources = contextlib.ExitStack()
    server = LocalValkey(resources.enter_context(open_directory()) / "vk")
    return _start(resources, server)


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary directory with mode 0711: other accounts may traverse it, but not list it."""
    directory = Path(tempfile.mkdtemp(prefix="tunery-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def temporary_database(server_url: str, name: str) -> Iterator[str]:
    """The URL of a new database without tables beside the one of `server_url`, dropped at the end."""
    url = make_url(server_url)
    admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _start(resources: contextlib.ExitStack, server: LocalServer) -> tuple[str, Callable[[], None]]:
    resources.callback(server.stop)
    try:
        server.start()
        return server.url, resources.close
    except BaseException:
        resources.close()
        raise
