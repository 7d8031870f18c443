"""A service with one finished job, and a directory of backups of it."""

from __future__ import annotations

import errno
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from sqlalchemy import Engine, text

from app.db.engine import Sessions, transaction
from app.services.operations import backup, integrity
from app.services.operations.backup_repository import BackupRepository
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import make_base_model, make_project, make_succeeded_job


class FailingReader(io.RawIOBase):
    """A disk that opens a file and cannot read it."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def read(self, _: int = -1) -> bytes:
        raise self.error


class FailingStorage(LocalStorage):
    """Storage on a disk that cannot read one of the objects."""

    def __init__(self, root: Path, key: str, error: OSError) -> None:
        super().__init__(root)
        self.key, self.error = key, error

    def open(self, key: str) -> BinaryIO:
        reader: Any = FailingReader(self.error)
        return reader if key == self.key else super().open(key)


INPUT_OUTPUT = OSError(errno.EIO, "Input/output error")


@dataclass
class BackedUpService:
    """A database with one finished job, its storage, and a directory of backups."""

    url: str
    engine: Engine
    sessions: Sessions
    storage: LocalStorage
    backups: BackupRepository

    def back_up(self) -> backup.BackupResult:
        return backup.back_up(self.url, self.storage, self.backups, [], lambda _: None)

    def fail_to_read(self, key: str, error: OSError = INPUT_OUTPUT) -> None:
        self.storage = FailingStorage(self.storage.root, key, error)

    def check(self, *, repair: bool = False, backups: bool = False) -> list[tuple[str, str, str | None]]:
        found = integrity.check(self.engine, self.storage, True, repair, self.backups if backups else None)
        return [(finding.key, finding.problem, finding.repaired) for finding in found]

    def a_key(self) -> str:
        with transaction(self.sessions) as session:
            return str(session.scalars(text("SELECT storage_key FROM files ORDER BY seq LIMIT 1")).one())

    def path(self, key: str) -> Path:
        return self.storage.objects / key


@pytest.fixture
def service(
    settings: Settings, engine: Engine, sessions: Sessions, storage: LocalStorage, tmp_path: Path
) -> BackedUpService:
    with transaction(sessions) as session:
        project = make_project(session)
        make_base_model(session, tmp_path / "base")
        make_succeeded_job(session, storage, project)
    return BackedUpService(settings.database_url, engine, sessions, storage, BackupRepository(tmp_path / "backups"))
