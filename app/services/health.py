"""Readiness: checks of the database, storage and broker, each with an action if it fails."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from app.db import migrate, models
from app.db.engine import Sessions
from app.job_queue import WorkerNotifier
from app.storage import Storage, StorageError


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    required: bool
    detail: str


def readiness(sessions: Sessions, storage: Storage, notifier: WorkerNotifier) -> list[Check]:
    """All checks. The broker is not required: jobs are accepted without it, and workers poll the database."""
    return [
        *_database(sessions),
        _storage(storage),
        _check("broker", notifier.can_connect(), "reachable", "not reachable: jobs start when workers poll", False),
    ]


def _database(sessions: Sessions) -> list[Check]:
    try:
        with sessions() as session:
            connection: Connection = session.connection()
            current = migrate.is_current(connection)
            registered = current and bool(models.list_base(session))
    except SQLAlchemyError:
        return [_check("database", False, "", "PostgreSQL does not answer")]
    return [
        _check("database", True, "reachable", ""),
        _check("migrations", current, "at the newest revision", "run the migrations: `make migrate`"),
        _check("base_model", registered, "registered", "register one: `tunery models add NAME DIR`"),
    ]


def _storage(storage: Storage) -> Check:
    try:
        with tempfile.TemporaryFile(dir=storage.staging) as file:
            file.write(b"ready")
            file.flush()
        storage.check()
    except StorageError as error:
        return _check("storage", False, "", str(error.strerror))
    except OSError as error:
        return _check("storage", False, "", f"not writable: {error.strerror}")
    return _check("storage", True, "writable", "")


def _check(name: str, ok: bool, good: str, bad: str, required: bool = True) -> Check:
    return Check(name, ok, required, good if ok else bad)
