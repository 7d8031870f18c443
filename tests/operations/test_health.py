"""Readiness: each check has its own timeout, and a check that hangs is not started again."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from app.db.engine import Sessions, transaction
from app.job_queue import WorkerNotifier
from app.services.operations import health
from app.services.operations.health import HealthChecks, disk_check
from app.settings import Settings
from app.storage import LocalStorage
from tests.full_disk import small_disk


class HangingStorage(LocalStorage):
    """A file server that is away: the first access blocks until `release`."""

    def __init__(self, root: Path) -> None:
        self.calls = 0
        self.release = threading.Event()
        self.release.set()  # the constructor has access
        super().__init__(root)

    @property
    def staging(self) -> Path:
        if hasattr(self, "_staging"):
            self.calls += 1
            self.release.wait(30)
        return self._staging

    @staging.setter
    def staging(self, path: Path) -> None:
        self._staging = path


def test_a_check_that_hangs_fails_alone_and_is_not_started_again(
    sessions: Sessions, settings: Settings, tmp_path: Path, base_model: str
) -> None:
    LocalStorage(tmp_path / "storage")
    storage = HangingStorage(tmp_path / "storage")
    calls_before = storage.calls
    storage.release.clear()
    notifier = WorkerNotifier(settings.redis_url)
    checks = HealthChecks(sessions, storage, notifier, tmp_path, 0)
    for _ in range(2):
        results = {check.name: check for check in checks.run(timeout_seconds=2)}
        assert results["storage"].ok is False
        assert "2 s" in results["storage"].detail
        assert all(check.ok for name, check in results.items() if name != "storage")
    assert storage.calls == calls_before + 1
    storage.release.set()
    notifier.close()


def test_a_full_storage_is_reported_and_not_required_as_files_can_be_read(
    sessions: Sessions, settings: Settings, tmp_path: Path, base_model: str
) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        storage, notifier = LocalStorage(disk.path / "storage"), WorkerNotifier(settings.redis_url)
        disk.fill()
        results = {check.name: check for check in HealthChecks(sessions, storage, notifier, disk.path, 0).run()}
        notifier.close()
    assert results["storage"].ok is False
    assert os.strerror(errno.ENOSPC) in results["storage"].detail
    assert all(check.ok for check in results.values() if check.required)


@pytest.mark.parametrize(("error", "is_required"), [(errno.EROFS, False), (errno.EDQUOT, False), (errno.EIO, True)])
def test_a_storage_that_cannot_be_read_is_required(tmp_path: Path, error: int, is_required: bool) -> None:
    class FailingDisk(LocalStorage):
        def check(self, size_bytes: int = 1) -> None:
            raise OSError(error, "it fails")

    storage = FailingDisk(tmp_path)
    assert health._storage(storage).required == is_required
    storage.objects.rmdir()
    storage.objects.write_bytes(b"no directory: every stat fails")
    assert health._storage(storage).required


def test_low_disk_space_is_reported_and_not_required(tmp_path: Path) -> None:
    assert disk_check(tmp_path, 0).ok
    low = disk_check(tmp_path, 100)
    gone = disk_check(tmp_path / "nowhere", 0)
    assert [(found.ok, found.required) for found in (low, gone)] == [(False, False)] * 2
    assert os.strerror(errno.ENOENT) in gone.detail


def test_processes_stay_ready_on_the_schema_of_a_later_release(
    sessions: Sessions, settings: Settings, storage: LocalStorage, tmp_path: Path, base_model: str
) -> None:
    """During a rolling restart the schema is migrated first, and a load balancer asks `/readyz`."""
    notifier = WorkerNotifier(settings.redis_url)
    checks = HealthChecks(sessions, storage, notifier, tmp_path, 0)
    for revision, is_ready in (("9999_later", True), ("0001", False)):
        with transaction(sessions) as session:
            session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        results = {check.name: check for check in checks.run()}
        assert (results["migrations"].ok, results["base_model"].ok) == (is_ready, is_ready)
    assert "run the migrations" in results["migrations"].detail
    assert results["base_model"].detail == "unknown until then"
    notifier.close()
