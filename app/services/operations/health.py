"""Readiness: checks of database, storage, disk and broker, at the same time and each with its own timeout."""

from __future__ import annotations

import errno
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from app.db import migrate
from app.db.base_models import models
from app.db.engine import Sessions
from app.job_queue import WorkerNotifier
from app.storage import Storage, StorageError
from app.system.host import free_space

TIMEOUT_SECONDS = 5.0
READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of a storage that can still be read


@dataclass(frozen=True)
class ProbeResult:
    name: str
    ok: bool
    required: bool
    detail: str


class HealthChecks:
    """The checks of one process. The broker is not required: jobs are accepted without it, and workers poll the
    database. Nor is free space, on the disk or in the bucket: uploads are refused, and files are read and deleted."""

    def __init__(
        self, sessions: Sessions, storage: Storage, notifier: WorkerNotifier, data_dir: Path, low_disk_percent: float
    ) -> None:
        self._probes: dict[str, Callable[[], list[ProbeResult]]] = {
            "database": lambda: _database(sessions),
            "storage": lambda: [_storage(storage)],
            "disk": lambda: [disk_check(data_dir, low_disk_percent)],
            "broker": lambda: [
                _check(
                    "broker", notifier.can_connect(), "reachable", "not reachable: jobs start when workers poll", False
                )
            ],
        }
        self._lock = threading.Lock()
        self._futures: dict[str, Future[list[ProbeResult]]] = {}

    def run(self, timeout_seconds: float = TIMEOUT_SECONDS) -> list[ProbeResult]:
        """Run all checks at the same time. One that does not end within the timeout has failed."""
        deadline = time.monotonic() + timeout_seconds
        checks: list[ProbeResult] = []
        for name, future in [(name, self._start(name)) for name in self._probes]:
            try:
                checks += future.result(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                detail = f"no response within {timeout_seconds:g} s"
                checks.append(ProbeResult(name, False, name in ("database", "storage"), detail))
        return checks

    def _start(self, name: str) -> Future[list[ProbeResult]]:
        """Start a check in a daemon thread; one that hangs (an unreachable file server) is not started again."""
        with self._lock:
            future = self._futures.get(name)
            if future is None or future.done():
                future = self._futures[name] = Future()
                arguments = self._probes[name], future
                threading.Thread(target=_run, args=arguments, name=f"check-{name}", daemon=True).start()
            return future


def _run(probe: Callable[[], list[ProbeResult]], future: Future[list[ProbeResult]]) -> None:
    try:
        future.set_result(probe())
    except BaseException as error:
        future.set_exception(error)


def disk_check(data_dir: Path, low_disk_percent: float) -> ProbeResult:
    """Whether enough of the data directory's disk is free."""
    try:
        space, is_low = free_space(data_dir, low_disk_percent)
    except OSError as error:
        return _check("disk", False, "", f"the data directory cannot be read: {error.strerror}", False)
    bad = f"only {space}: delete files, checkpoints and exports that are not needed, or enlarge the disk"
    return _check("disk", not is_low, space, bad, False)


def _database(sessions: Sessions) -> list[ProbeResult]:
    try:
        with sessions() as session:
            connection: Connection = session.connection()
            is_newer = migrate.is_newer(connection)
            usable = is_newer or migrate.is_current(connection)
            registered = usable and bool(models.list_base(session))
    except SQLAlchemyError:
        return [_check("database", False, "", "PostgreSQL does not answer")]
    revision_text = "of a later release: restart this process with it" if is_newer else "at the newest revision"
    return [
        _check("database", True, "reachable", ""),
        _check("migrations", usable, revision_text, "the schema is of an earlier release: run the migrations"),
        _check(
            "base_model",
            registered,
            "registered",
            "register one: `tunery models add NAME DIR`" if usable else "unknown until then",
        ),
    ]


def _storage(storage: Storage) -> ProbeResult:
    """Whether files can be written. Without space for that the check is not required, as long as they can be read."""
    try:
        with tempfile.TemporaryFile(dir=storage.staging) as file:
            file.write(b"ready")
            file.flush()
        storage.check()
    except OSError as error:
        detail = str(error.strerror) if isinstance(error, StorageError) else f"not writable: {error.strerror}"
        return _check("storage", False, "", detail, required=error.errno not in READ_ONLY or not _can_be_read(storage))
    return _check("storage", True, "writable", "")


def _can_be_read(storage: Storage) -> bool:
    try:
        with suppress(FileNotFoundError):
            storage.stat("probes/none")
    except OSError:
        return False
    return True


def _check(name: str, ok: bool, good: str, bad: str, required: bool = True) -> ProbeResult:
    return ProbeResult(name, ok, required, good if ok else bad)
