"""Database access of the operator commands: one transaction, with errors for people if the database is unavailable."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator

from psycopg.errors import UndefinedTable
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from app.cli.errors import CliError, UsageError
from app.db.access import audit
from app.db.engine import make_engine, make_sessions, transaction
from app.settings import psycopg_url


class Database:
    def __init__(self, url: str, action: str) -> None:
        """`action` names the command in the audit log."""
        self._url = _validated_url(url)
        self._action = action

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """Commit at the end of the block; a command prints its result after it."""
        engine = make_engine(self._url, pool_size=1)
        try:
            sessions = make_sessions(engine)
            audit.audit_sessions(sessions)
            with audit.audited_as(operator_context(self._action)), transaction(sessions) as session:
                yield session
        except OperationalError as error:
            reason = str(error.orig).strip().split("\n")[0]
            raise CliError(
                f"PostgreSQL at {_redacted(self._url)} does not answer ({reason}). Check that it runs."
            ) from None
        except ProgrammingError as error:
            if not isinstance(error.orig, UndefinedTable):
                raise
            raise CliError(f"{_redacted(self._url)} has no tables of Tunery yet. Run the migrations first.") from None
        finally:
            engine.dispose()


def operator_context(action: str) -> audit.AuditContext:
    """The audit context of an operator command: the operating system's account and the host name."""
    return audit.AuditContext(
        action=action, actor_type="operator", actor_id=f"{_account_name()}@{socket.gethostname()}"
    )


def _account_name() -> str:
    """The name of the account, or `uid-N` in a container whose account has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def _validated_url(database_url: str) -> str:
    try:
        url = psycopg_url(database_url)  # not from Settings: another variable may be invalid
        is_postgres = make_url(url).get_backend_name() == "postgresql"
    except ArgumentError:
        is_postgres = False
    if not is_postgres:
        raise UsageError("DATABASE_URL is not a PostgreSQL URL such as postgresql://user@host/name.")
    return url


def _redacted(database_url: str) -> str:
    """The URL without its password."""
    return make_url(database_url).render_as_string(hide_password=True)
