"""A service is backed up while it trains, lost, restored into a new data directory, and goes on with the job."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.errors import UsageError
from app.cli.local_stack import restore
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.machine import CannotStart
from app.services.operations.backup_repository import BackupManifest, BackupRepository
from app.system.files import ObjectDigest
from tests.deadline import until
from tests.full_disk import small_disk
from tests.stack import open_directory
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.up import Service
from tests.upgrade.make_fixtures import ENVIRONMENT, LONG, Client, kill

SHORT_LEASES = {
    "TUNERY_LEASE_TTL_SECONDS": "20",
    "TUNERY_LEASE_RENEW_SECONDS": "3",
    "TUNERY_SELF_FENCE_SECONDS": "14",
    "TUNERY_SELF_FENCE_KILL_SECONDS": "17",
    "TUNERY_REAP_GRACE_SECONDS": "1",
}
RESUMED = re.compile(r"Resuming from the snapshot of step (\d+)")


class RestoreOfFiles:
    """A restore into `root`, in which one file stands for database and storage."""

    def __init__(self, root: Path, backups: Path) -> None:
        self.layout = Layout(root)
        self.repository = BackupRepository(backups)
        self.during: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        manifest = BackupManifest("1", "1", "0.1.0", "x", ObjectDigest(0, ""), {})
        restore.restore_data_directory(self.layout, self.repository, manifest, ("admin-key",), print, False)

    def make_files(self, unfinished: Layout, *_: object) -> None:
        (unfinished.root / "storage" / "object").write_text("restored")
        self.during()


@pytest.fixture
def restore_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RestoreOfFiles:
    backup = tmp_path / "backups" / "backups" / "1"
    backup.mkdir(parents=True)
    (backup / "admin-key").write_text("tnry_key")
    restore_files = RestoreOfFiles(tmp_path / "data", tmp_path / "backups")
    monkeypatch.setattr(restore, "_restore", restore_files.make_files)
    return restore_files


class TestRestoreDataDirectory:
    def test_a_restore_makes_a_directory_that_tunery_up_accepts(self, restore_files: RestoreOfFiles) -> None:
        restore_files()
        layout = restore_files.layout
        layout.check_ownership()
        assert (layout.root / "storage" / "object").read_text() == "restored"
        assert layout.admin_key.read_text() == "tnry_key"
        assert not (layout.root / restore.UNFINISHED).exists()
        with pytest.raises(UsageError, match="is not empty"):
            restore_files()

    def test_a_restore_into_a_mount_point_succeeds(self, restore_files: RestoreOfFiles) -> None:
        with small_disk(restore_files.layout.root, 1 << 20):
            (restore_files.layout.root / "lost+found").mkdir()
            restore_files()
            assert (restore_files.layout.root / "storage" / "object").read_text() == "restored"

    def test_a_second_restore_at_the_same_time_is_refused(self, restore_files: RestoreOfFiles) -> None:
        def restore_again() -> None:
            with pytest.raises(CannotStart, match="Another restore"):
                restore_files()
            with pytest.raises(CannotStart, match="neither empty"):
                restore_files.layout.check_ownership()

        restore_files.during = restore_again
        restore_files()
        assert (restore_files.layout.root / "storage" / "object").read_text() == "restored"

    def test_a_restore_can_be_repeated_after_an_error(self, restore_files: RestoreOfFiles) -> None:
        def fail() -> None:
            raise OSError("the disk is full")

        restore_files.during = fail
        with pytest.raises(OSError, match="disk is full"):
            restore_files()
        restore_files.layout.check_ownership()
        restore_files.during = lambda: None
        restore_files()
        assert restore_files.layout.admin_key.read_text() == "tnry_key"

    def test_a_restore_that_was_killed_while_it_moved_the_files_is_refused(
        self, restore_files: RestoreOfFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def move_and_fail(unfinished: Layout) -> None:
            unfinished.admin_key.rename(restore_files.layout.admin_key)
            raise OSError("killed")

        monkeypatch.setattr(restore, "_move_up", move_and_fail)
        with pytest.raises(OSError, match="killed"):
            restore_files()
        with pytest.raises(CannotStart, match="was interrupted"):
            restore_files()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_running_job_goes_on_after_a_restore() -> None:
    with open_directory() as here, open_directory() as there:
        environment = ENVIRONMENT | SHORT_LEASES | {"TUNERY_SNAPSHOT_INTERVAL_SECONDS": "1"}
        lost, restored = Service(here, environment), Service(there, environment)
        backups, base = there / "backups", make_tiny_base(there / "tiny")
        try:
            lost.start()
            lost.tunery("models", "add", "tiny", str(base))
            job_id = back_up_while_training(lost, backups)
        finally:
            kill(lost.process)
        restored.tunery("restore", str(backups))
        shutil.copytree(lost.data / "models", restored.data / "models", dirs_exist_ok=True)  # saves a conversion
        try:
            restored.start()
            with Client(restored) as client:
                client.until_status(job_id, "succeeded")
                resumed = [int(found[1]) for text in client.messages(job_id) if (found := RESUMED.search(text))]
                assert len(resumed) == 1
                assert resumed[0] > 0
        finally:
            restored.stop()


def back_up_while_training(service: Service, backups: Path) -> str:
    """The id of a job that was running before and after the backup."""

    def has_snapshot() -> bool:
        stored = (service.data / "storage").rglob(f"{job_id}/**/step-*")
        return any(int(path.name.split("-")[1]) > 0 for path in stored)

    with Client(service) as client:
        training_file = client.upload(make_tiny_dataset(service.directory / "train.jsonl", 16))
        job_id = client.create(training_file, hyperparameters=LONG)
        until(has_snapshot, "a snapshot of a step is stored", 180)
        service.tunery("backup", str(backups))
        assert client.job(job_id)["status"] == "running", "the job ended before the backup: give it more steps"
    return job_id
