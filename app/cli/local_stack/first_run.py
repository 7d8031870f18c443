"""Initialization of the database: the schema, a project, an API key, a base model.

Every step is idempotent: a start after a kill -9 completes the missing steps and repeats none.
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

from app.cli.client.database import operator_context
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
    """Sessions of the database, migrated to the newest revision under the advisory lock of app.db.migrate.

    `on_migrated` is called with the revisions before and after, if they differ. Raises CannotStart.
    """
    engine = make_engine(Settings(database_url=database_url, redis_url="redis://").database_url)
    try:
        _migrate(engine, on_migrated)
        sessions = make_sessions(engine)
        audit.audit_sessions(sessions)
        with audit.audited_as(operator_context("up")):
            yield sessions
    finally:
        engine.dispose()


def ensure_admin_key(sessions: Sessions, layout: Layout) -> str | None:
    """Store the key in its file, then in the database. Returns the key if this start created it.

    The file is written first, because the database has only the hash.
    """
    provided_key = _read_provided_key()
    if provided_key is None and not layout.admin_key.exists():
        with transaction(sessions) as session:
            if keys.has_usable_key(session):  # the operator removed the file, or the database has other keys
                return None
        write_secret(layout.admin_key, _generate_key() + "\n")
    elif provided_key is not None:
        write_secret(layout.admin_key, provided_key + "\n")
    return _store_key(sessions, layout.admin_key.read_text(encoding="utf-8").strip())


def require_key_for_remote_access(sessions: Sessions, host: str) -> None:
    """Raises CannotStart if the service would listen on a public address without any usable API key."""
    with transaction(sessions) as session:
        if not is_loopback(host) and not keys.has_usable_key(session):
            raise CannotStart(
                f"This service has no API key, so it does not listen on {host}. Start it without --host, create a key "
                "(`tunery keys create --project default --scope all --scope admin`), and start it again."
            )


def register_base_model(sessions: Sessions, directory: Path) -> bool:
    """Register the bundled model if its directory exists. Returns whether it is registered."""
    with transaction(sessions) as session:
        if base_model.is_registered(session):
            return True
        if directory.exists():
            base_model.register(session, directory)
        return directory.exists()


def _migrate(engine: Engine, on_migrated: migrate.OnMigrated | None) -> None:
    try:
        migrate.upgrade(engine, on_migrated=on_migrated)
    except OperationalError as error:
        reason = " ".join(str(error.orig).split())
        raise CannotStart(f"The database does not answer: {reason}. Check DATABASE_URL.") from None
    except CommandError as error:
        raise CannotStart(
            f"Cannot migrate the database: {error}. If a newer Tunery has used it, start that version."
        ) from None


def _store_key(sessions: Sessions, secret: str) -> str | None:
    try:
        with transaction(sessions) as session:
            project = keys.ensure_project(session, keys.DEFAULT_PROJECT)
            if keys.find_by_secret(session, secret) is not None:
                return None
            keys.issue(session, project, KEY_NAME, keys.ADMIN_SCOPES, secret=secret)
    except IntegrityError:  # a revoked key: its hash exists, and it stays revoked
        return None
    return secret


def _read_provided_key() -> str | None:
    file = os.environ.get(KEY_FILE_VARIABLE)
    if not file:
        return None
    try:
        secret = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CannotStart(f"{KEY_FILE_VARIABLE} is {file}, which cannot be read: {error.strerror}.") from None
    if not keys.is_valid_secret(secret):
        raise CannotStart(
            f"The key in {file} ({KEY_FILE_VARIABLE}) has {len(secret)} characters; required are at least "
            f"{keys.MIN_SECRET_CHARACTERS}, printable ASCII without spaces, as from `openssl rand -hex 32`."
        )
    return secret


def _generate_key() -> str:
    return f"{keys.PREFIX}_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
