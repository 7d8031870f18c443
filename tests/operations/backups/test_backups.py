"""Backups of a real database and a local storage, and what is restored from them."""

from __future__ import annotations

import errno
import hashlib
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update

from app.db.deliveries import deliveries
from app.db.engine import make_engine, make_sessions, transaction
from app.db.jobs import checkpoints, exports
from app.db.operations import status
from app.db.operations.stored_objects import named_objects
from app.db.scheduling import workers
from app.db.tables import Export, File, Job, Project, Worker
from app.db.webhooks import deliveries as webhook_deliveries
from app.domain.artifacts.exports import ExportKind, ExportType
from app.services.operations import backup, restore
from app.services.operations.backup_repository import BackupError, BackupRepository
from app.storage import LocalStorage, StorageError
from tests.factories import (
    make_file,
    make_job,
    make_project,
    make_target,
    make_webhook_endpoint,
    put_bytes,
    start_job,
    validate_job,
)
from tests.full_disk import SmallDisk, small_disk
from tests.operations.backups.conftest import BackedUpService


class FutureClock:
    @staticmethod
    def now(zone: Any) -> datetime:
        return datetime(2999, 1, 1, tzinfo=zone)


@pytest.fixture
def empty_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        yield disk


def contents(engine: Engine, storage: LocalStorage) -> dict[str, str]:
    with engine.connect() as connection:
        keys = [row.key for row in named_objects(connection)]
    digests = {}
    for key in keys:
        with storage.open(key) as file:
            digests[key] = hashlib.sha256(file.read()).hexdigest()
    return digests


class TestBackUp:
    def test_a_backup_has_every_object_that_a_row_names_and_a_second_one_copies_nothing(
        self, service: BackedUpService
    ) -> None:
        (service.backups.root / "lost+found").mkdir(parents=True)  # of an empty file system
        result = service.back_up()
        assert result.manifest.objects.keys() == contents(service.engine, service.storage).keys()
        assert result.copied_count == len(result.manifest.objects) > 3
        assert not result.manifest.damaged
        assert not service.backups.unfinished.exists()
        second = service.back_up()
        assert (second.copied_count, second.copied_bytes) == (0, 0)
        assert len(service.backups.names()) == 2

    def test_an_object_deleted_after_the_dump_makes_it_repeat_the_dump(
        self, service: BackedUpService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, dump = service.a_key(), backup._dump

        def delete_after_first_dump(url: str, staged: Path, repository: BackupRepository) -> object:
            dumped = dump(url, staged, repository)
            if service.path(key).exists():
                with transaction(service.sessions) as session:
                    session.execute(update(File).where(File.storage_key == key).values(purged_at=text("now()")))
                service.storage.delete(key)
            return dumped

        monkeypatch.setattr(backup, "_dump", delete_after_first_dump)
        manifest = service.back_up().manifest
        assert not manifest.damaged
        assert key not in manifest.objects

    @pytest.mark.parametrize("problem", ["missing", "cannot be read: Input/output"])
    def test_a_backup_names_an_object_that_it_lacks(self, service: BackedUpService, problem: str) -> None:
        key = service.a_key()
        if problem == "missing":
            service.path(key).unlink()
        else:
            service.fail_to_read(key)
        manifest = service.back_up().manifest
        assert manifest.damaged[key].startswith(problem)
        assert len(manifest.objects) > 2
        assert key not in manifest.objects

    def test_a_limit_keeps_the_newest_and_their_objects(self, service: BackedUpService) -> None:
        first, key = service.back_up().manifest, service.a_key()
        with transaction(service.sessions) as session:
            session.execute(update(File).where(File.storage_key == key).values(purged_at=text("now()")))
        second = service.back_up().manifest
        assert service.backups.delete_old(keep=1) == [first.name]
        assert service.backups.names() == [second.name]
        assert not service.backups.path(key).exists()
        assert all(service.backups.path(each).exists() for each in second.objects)

    @pytest.mark.parametrize("full_before", ["dump", "objects"])
    def test_a_full_disk_leaves_the_earlier_backup_whole(
        self,
        service: BackedUpService,
        empty_disk: SmallDisk,
        monkeypatch: pytest.MonkeyPatch,
        full_before: str,
    ) -> None:
        service.backups = BackupRepository(empty_disk.path / "backups")
        first = service.back_up().manifest
        with transaction(service.sessions) as session:
            make_file(session, service.storage, make_project(session, "second"), b"x" * 4096, "batch", "more.jsonl")
        dump = backup._dump

        def dump_and_fill(url: str, staged: Path, repository: BackupRepository) -> object:
            dumped = dump(url, staged, repository)
            empty_disk.fill()
            return dumped

        if full_before == "dump":
            empty_disk.fill()
        else:
            monkeypatch.setattr(backup, "_dump", dump_and_fill)
        with pytest.raises(BackupError, match=r"No space.*are whole"):
            service.back_up()
        empty_disk.empty()
        assert service.backups.names() == [first.name]
        assert restore.check_restorable(service.backups, None, may_migrate=False) == first

    def test_a_read_only_directory_of_backups_is_refused(self, service: BackedUpService, empty_disk: SmallDisk) -> None:
        service.backups = BackupRepository(empty_disk.path / "backups")
        first = service.back_up().manifest
        subprocess.run(["mount", "-o", "remount,ro", empty_disk.path], check=True)
        with pytest.raises(BackupError, match=r"Read-only.*choose another"):
            service.back_up()
        assert restore.check_restorable(service.backups, None, may_migrate=False) == first

    def test_an_unreadable_file_of_the_data_directory_is_named(self, service: BackedUpService, tmp_path: Path) -> None:
        key = tmp_path / "admin-key"
        key.mkdir()  # its read fails
        with pytest.raises(BackupError, match=r"admin-key cannot be"):
            backup.back_up(service.url, service.storage, service.backups, [key], lambda _: None)

    def test_a_bucket_without_an_answer_is_named_as_the_cause(self, service: BackedUpService) -> None:
        service.fail_to_read(service.a_key(), StorageError(errno.EIO, "no answer"))
        with pytest.raises(BackupError, match=r"^The storage cannot"):
            service.back_up()

    def test_a_backup_copies_an_object_again_that_was_damaged_and_is_repaired(self, service: BackedUpService) -> None:
        key = service.a_key()
        good = service.path(key).read_bytes()
        service.path(key).write_bytes(good[:-1] + b"#")
        damaged = service.back_up().manifest
        assert damaged.damaged[key].startswith("wrong content: file")
        service.path(key).write_bytes(good)
        assert not service.back_up().manifest.damaged
        assert service.backups.path(key).read_bytes() == good

    def test_a_backup_after_an_interruption_copies_only_what_is_missing(self, service: BackedUpService) -> None:
        first = service.back_up()
        for path in service.backups.backups.glob("*/*"):
            path.unlink()
        assert service.back_up().copied_count == 0
        service.backups.path(service.a_key()).write_bytes(b"torn by a crash of the host")
        for path in service.backups.backups.glob("*/*"):
            path.unlink()
        again = service.back_up()
        assert again.copied_count == 1
        assert again.manifest.objects == first.manifest.objects

    def test_a_backup_by_a_clock_that_was_set_back_is_the_newest(
        self, service: BackedUpService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backup, "datetime", FutureClock)
        ahead = service.back_up().manifest
        monkeypatch.undo()
        made = service.back_up().manifest
        assert service.backups.manifest() == made
        assert made.created_at < ahead.created_at
        assert service.backups.delete_old(keep=1) == [ahead.name]

    def test_backups_exclude_each_other_and_their_readers(self, service: BackedUpService) -> None:
        service.back_up()
        with service.backups.locked_for_reading(wait=False):
            with service.backups.locked_for_reading(wait=False):
                pass
            with pytest.raises(BackupError, match="Another backup"):
                service.backups.delete_old(keep=1)
        with service.backups.locked(), pytest.raises(BackupError, match="Another backup"):
            service.back_up()
        with (
            service.backups.locked(),
            pytest.raises(BackupError, match="is being made"),
            service.backups.locked_for_reading(wait=False),
        ):
            pass

    def test_a_directory_with_other_files_is_refused(self, service: BackedUpService) -> None:
        service.backups.root.mkdir()
        (service.backups.root / "thesis.tex").touch()
        with pytest.raises(BackupError, match="neither empty nor"):
            service.back_up()

    def test_a_database_without_tables_is_refused(self, service: BackedUpService, blank_database_url: str) -> None:
        service.url = blank_database_url
        with pytest.raises(BackupError, match="nothing to back"):
            service.back_up()


class TestRestore:
    @pytest.fixture
    def target(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(tmp_path / "target")

    def test_a_restore_gives_the_same_rows_and_bytes(
        self, service: BackedUpService, blank_database_url: str, target: LocalStorage
    ) -> None:
        manifest = service.back_up().manifest
        for _ in range(2):  # the second finds the objects of an interrupted first
            engine = make_engine(blank_database_url)
            with engine.begin() as connection:
                connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
            restore.restore(blank_database_url, target, service.backups, manifest, lambda _: None)
            assert contents(engine, target) == contents(service.engine, service.storage)
            with transaction(make_sessions(engine)) as session:
                assert [job.state for job in session.query(Job)] == ["succeeded"]
            engine.dispose()

    def test_a_restore_ends_the_attempts_of_the_workers_that_ran_then(
        self, service: BackedUpService, blank_database_url: str, target: LocalStorage
    ) -> None:
        with transaction(service.sessions) as session:
            project = session.scalars(select(Project)).one()
            job = make_job(session, project, make_file(session, service.storage, project))
            validate_job(session)
            start_job(session)
            workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, {})
            succeeded = session.scalars(select(Job).where(Job.state == "succeeded")).one()
            checkpoint = checkpoints.kept(session, succeeded.id)[0]
            assert exports.insert(session, succeeded, checkpoint, ExportKind(ExportType.MERGED), 1)
            exports.claim(session, "gpu0@host#1", 60)
        manifest = service.back_up().manifest
        restore.restore(blank_database_url, target, service.backups, manifest, lambda _: None)
        restored = make_engine(blank_database_url)
        with transaction(make_sessions(restored)) as session:
            found = session.get_one(Job, job.id)
            assert (found.state, found.lease_owner, found.crash_streak) == ("queued", None, 0)
            assert [row.state for row in session.scalars(select(Export))] == ["queued"]
            assert session.scalars(select(Worker)).all() == []
        restored.dispose()

    def test_a_restored_copy_sends_and_delivers_nothing_until_its_backup_is_restored(
        self, service: BackedUpService, blank_database_url: str, target: LocalStorage, tmp_path: Path
    ) -> None:
        with transaction(service.sessions) as session:
            job = session.scalars(select(Job)).one()
            endpoint = make_webhook_endpoint(session, job.project_id)
            webhook_deliveries.add_test(session, endpoint, "fine_tuning.job.succeeded", {})
            engine = {"kind": "vllm", "urls": ["https://engine.example"]}
            place = make_target(session, job.project_id, destination=engine)
            deliveries.create(session, job, checkpoints.kept(session, job.id)[0], place)
        manifest, engine_of_copy = service.back_up().manifest, make_engine(blank_database_url)

        def claimed() -> tuple[bool, int, int]:
            with transaction(make_sessions(engine_of_copy)) as session:
                sent = webhook_deliveries.claim(session, 9, "sender", 0.0)
                return status.is_copy(session), len(sent), len(deliveries.claim(session, 9, "sender", 0.0))

        restore.restore(blank_database_url, target, service.backups, manifest, lambda _: None, is_copy=True)
        assert claimed() == (True, 0, 0)
        of_copy, again = BackupRepository(tmp_path / "of-copy"), LocalStorage(tmp_path / "again")
        manifest = backup.back_up(blank_database_url, target, of_copy, [], lambda _: None).manifest
        with engine_of_copy.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        restore.restore(blank_database_url, again, of_copy, manifest, lambda _: None)
        assert claimed() == (False, 1, 1)
        assert contents(engine_of_copy, again) == contents(service.engine, service.storage)
        engine_of_copy.dispose()

    def test_a_restore_over_a_used_database_or_storage_is_refused(
        self, service: BackedUpService, blank_database_url: str, target: LocalStorage
    ) -> None:
        manifest = service.back_up().manifest
        with pytest.raises(BackupError, match="is not empty"):
            restore.restore(service.url, target, service.backups, manifest, lambda _: None)
        put_bytes(target, "files/foreign", b"x")
        with pytest.raises(BackupError, match="such as files/foreign"):
            restore.restore(blank_database_url, target, service.backups, manifest, lambda _: None)

    def test_a_damaged_backup_is_refused(
        self, service: BackedUpService, blank_database_url: str, target: LocalStorage
    ) -> None:
        manifest, key = service.back_up().manifest, service.a_key()
        service.backups.path(key).write_bytes(b"other")
        with pytest.raises(BackupError, match="has changed"):
            restore.restore(blank_database_url, target, service.backups, manifest, lambda _: None)
        (service.backups.backups / manifest.name / "database.dump").write_bytes(b"")
        with pytest.raises(BackupError, match="has changed"):
            restore.check_restorable(service.backups, None, may_migrate=False)

    def test_a_restore_of_a_damaged_object_takes_the_copy_that_is_there(
        self, service: BackedUpService, blank_database_url: str, target: LocalStorage
    ) -> None:
        key = service.a_key()
        good = service.path(key).read_bytes()
        service.path(key).write_bytes(good[:-1] + b"#")
        damaged = service.back_up().manifest
        service.path(key).write_bytes(good)
        service.back_up()
        restore.restore(blank_database_url, target, service.backups, damaged, lambda _: None)
        assert (target.objects / key).read_bytes() == good
