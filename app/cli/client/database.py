"""Operator commands work straight on the database: one transaction, and a sentence when it can't be had."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator

from psycopg.errors import UndefinedTable
from pydantic import ValidationError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from app.cli.errors import CliError, UsageError
from app.db.access import audit
from app.db.engine import make_engine, make_sessions, transaction
from app.settings import Settings


class Database:
    def __init__(self, url: str, action: str) -> None:
        """`action` names the command in the audit log."""
        self._url = _normal(url)
        self._action = action

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """Committed when the block ends: what a command prints after it is true."""
        engine = make_engine(self._url, pool_size=1)
        try:
            sessions = make_sessions(engine)
            audit.audit_sessions(sessions)
            with audit.audited_as(operator(self._action)), transaction(sessions) as session:
                yield session
        except OperationalError as error:
            reason = str(error.orig).strip().split("\n")[0]
            raise CliError(f"PostgreSQL at {_shown(self._url)} does not answer ({reason}). Is it running?") from None
        except ProgrammingError as error:
            if not isinstance(error.orig, UndefinedTable):
                raise
            raise CliError(f"{_shown(self._url)} has no tables of Tunery yet. Run the migrations first.") from None
        finally:
            engine.dispose()


def operator(action: str) -> audit.AuditContext:
    """Whoever can reach the database: the account and the host of this command."""
    return audit.AuditContext(action=action, actor_type="operator", actor_id=f"{_account()}@{socket.gethostname()}")


def _account() -> str:
    """A container's account has a number and no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def _normal(database_url: str) -> str:
    try:
        url = Settings(database_url=database_url, redis_url="").database_url
        is_postgres = make_url(url).get_backend_name() == "postgresql"
    except ArgumentError:
        is_postgres = False
    except ValidationError as error:
        raise UsageError(f"The environment holds a setting that can't be used: {error}") from None
    if not is_postgres:
        raise UsageError("DATABASE_URL is no address of a PostgreSQL; one looks like postgresql://user@host/name.")
    return url


def _shown(database_url: str) -> str:
    """Without its password."""
    return make_url(database_url).render_as_string(hide_password=True)
