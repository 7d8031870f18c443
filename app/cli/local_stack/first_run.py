"""What a database must hold before the service is of use: the schema, a project, a key, a base model.

Each step may be cut short by a kill -9 and is then done by the next start; none is done twice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError, OperationalError

from app.cli.client.database import operator
from app.cli.local_stack import base_model
from app.cli.local_stack.data_directory import Layout, write_secret
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.ports import is_loopback
from app.db import migrate
from app.db.access import audit, keys
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.settings import Settings

KEY_NAME = "tunery up"
KEY_FILE_VARIABLE = "TUNERY_ADMIN_KEY_FILE"


@contextmanager
def prepared_database(database_url: str, on_migrated: migrate.OnMigrated | None = None) -> Iterator[Sessions]:
    """At the newest revision. The advisory lock of app.db.migrate holds off another machine that starts on it.

    `on_migrated` is called with the revisions before and after, if they differ.
    """
    engine = make_engine(Settings(database_url=database_url, redis_url="redis://").database_url)
    try:
        _migrate(engine, on_migrated)
        sessions = make_sessions(engine)
        audit.audit_sessions(sessions)
        with audit.audited_as(operator("up")):
            yield sessions
    finally:
        engine.dispose()


def ensure_admin_key(sessions: Sessions, layout: Layout) -> str | None:
    """The key, if this start created it. The file is written first: a key that only the database knows is lost."""
    given = _given_key()
    if given is None and not layout.admin_key.exists():
        with transaction(sessions) as session:
            if keys.has_usable_key(session):  # its owner took the file away, or this database has other keys
                return None
        write_secret(layout.admin_key, _new_key() + "\n")
    elif given is not None:
        write_secret(layout.admin_key, given + "\n")
    return _make_known(sessions, layout.admin_key.read_text(encoding="utf-8").strip())


def refuse_open_without_key(sessions: Sessions, host: str) -> None:
    """Other machines may reach it only once somebody has a key. Raises CannotStart."""
    with transaction(sessions) as session:
        if not is_loopback(host) and not keys.has_usable_key(session):
            raise CannotStart(
                f"No API key opens this service, so it does not listen on {host}. Start it without --host, create one "
                "(`tunery keys create --project default --scope all --scope admin`), and start it again."
            )


def offer_base_model(sessions: Sessions, directory: Path) -> bool:
    """Whether the bundled model is on offer now. One that an operator removed comes back at the next start."""
    with transaction(sessions) as session:
        if base_model.is_on_offer(session):
            return True
        if directory.exists():
            base_model.register(session, directory)
        return directory.exists()


def _migrate(engine: Engine, on_migrated: migrate.OnMigrated | None) -> None:
    try:
        migrate.upgrade(engine, on_migrated=on_migrated)
    except OperationalError as error:
        why = " ".join(str(error.orig).split())
        raise CannotStart(f"The database does not answer: {why}. Look at DATABASE_URL.") from None
    except CommandError as error:
        raise CannotStart(
            f"The database can't be migrated: {error}. If a newer Tunery has used it, start that one."
        ) from None


def _make_known(sessions: Sessions, secret: str) -> str | None:
    try:
        with transaction(sessions) as session:
            project = keys.ensure_project(session, keys.DEFAULT_PROJECT)
            if keys.find_by_secret(session, secret) is not None:
                return None
            keys.issue(session, project, KEY_NAME, keys.ADMIN_SCOPES, secret=secret)
    except IntegrityError:  # it was revoked: its hash is there, and it stays revoked
        return None
    return secret


def _given_key() -> str | None:
    file = os.environ.get(KEY_FILE_VARIABLE)
    if not file:
        return None
    try:
        secret = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CannotStart(f"{KEY_FILE_VARIABLE} names {file}, which can't be read: {error.strerror}.") from None
    if not keys.is_valid_secret(secret):
        raise CannotStart(
            f"The key in {file} ({KEY_FILE_VARIABLE}) has {len(secret)} characters; needed are at least "
            f"{keys.MIN_SECRET_CHARACTERS}, printable ASCII without spaces, as from `openssl rand -hex 32`."
        )
    return secret


def _new_key() -> str:
    return f"{keys.PREFIX}_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
