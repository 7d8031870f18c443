"""Backups of a real database and a local storage, and what is restored from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, text, update

from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.operations.stored_objects import named_objects
from app.db.tables import File, Job
from app.domain.operations.backups import BackupError
from app.services.operations.backups import backup, integrity, restore
from app.services.operations.backups.repository import BackupRepository
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import make_base_model, make_file, make_project, make_succeeded_job, put_bytes
from tests.full_disk import SmallDisk, small_disk


@dataclass
class Service:
    """A database with one finished job, its storage, and a directory of backups."""

    url: str
    engine: Engine
    sessions: Sessions
    storage: LocalStorage
    backups: BackupRepository

    def back_up(self) -> backup.BackupResult:
        return backup.back_up(self.url, self.storage, self.backups, [], lambda _: None)

    def check(self, *, repair: bool = False, backups: bool = False) -> list[tuple[str, str, str | None]]:
        found = integrity.check(self.engine, self.storage, True, repair, self.backups if backups else None)
        return [(finding.key, finding.problem, finding.repaired) for finding in found]

    def a_key(self) -> str:
        with transaction(self.sessions) as session:
            return str(session.scalars(text("SELECT storage_key FROM files ORDER BY seq LIMIT 1")).one())

    def path(self, key: str) -> Path:
        return self.storage.objects / key


@pytest.fixture
def service(settings: Settings, engine: Engine, sessions: Sessions, storage: LocalStorage, tmp_path: Path) -> Service:
    with transaction(sessions) as session:
        project = make_project(session)
        make_base_model(session, tmp_path / "base")
        make_succeeded_job(session, storage, project)
    return Service(settings.database_url, engine, sessions, storage, BackupRepository(tmp_path / "backups"))


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
    def test_has_every_object_that_a_row_names(self, service: Service) -> None:
        result = service.back_up()
        assert result.manifest.objects.keys() == contents(service.engine, service.storage).keys()
        assert result.copied_count == len(result.manifest.objects) > 3
        assert not result.manifest.damaged
        assert not service.backups.unfinished.exists()

    def test_of_the_same_objects_copies_nothing(self, service: Service) -> None:
        service.back_up()
        second = service.back_up()
        assert (second.copied_count, second.copied_bytes) == (0, 0)
        assert len(service.backups.names()) == 2

    def test_an_object_deleted_after_the_dump_makes_it_repeat_the_dump(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, dump = service.a_key(), backup._dump

        def delete_after_first_dump(url: str, staged: Path) -> object:
            dumped = dump(url, staged)
            if service.path(key).exists():
                with transaction(service.sessions) as session:
                    session.execute(update(File).where(File.storage_key == key).values(purged_at=text("now()")))
                service.storage.delete(key)
            return dumped

        monkeypatch.setattr(backup, "_dump", delete_after_first_dump)
        manifest = service.back_up().manifest
        assert not manifest.damaged
        assert key not in manifest.objects

    def test_with_a_missing_object_is_made_and_names_it(self, service: Service) -> None:
        key = service.a_key()
        service.path(key).unlink()
        manifest = service.back_up().manifest
        assert manifest.damaged[key].startswith("missing: file file-")
        assert key not in manifest.objects

    def test_keeps_the_newest_and_their_objects(self, service: Service) -> None:
        first, key = service.back_up().manifest, service.a_key()
        with transaction(service.sessions) as session:
            session.execute(update(File).where(File.storage_key == key).values(purged_at=text("now()")))
        second = service.back_up().manifest
        assert service.backups.delete_old(keep=1) == [first.name]
        assert service.backups.names() == [second.name]
        assert not service.backups.path(key).exists()
        assert all(service.backups.path(each).exists() for each in second.objects)

    def test_a_full_disk_leaves_the_earlier_backup_whole(self, service: Service, empty_disk: SmallDisk) -> None:
        service.backups = BackupRepository(empty_disk.path / "backups")
        first = service.back_up().manifest
        with transaction(service.sessions) as session:
            make_file(session, service.storage, make_project(session, "second"), b"x" * 4096, "batch", "more.jsonl")
        empty_disk.fill()
        with pytest.raises(BackupError, match="The earlier backups are whole"):
            service.back_up()
        empty_disk.empty()
        assert service.backups.names() == [first.name]
        assert restore.check_restorable(service.backups, None, may_migrate=False) == first

    def test_two_at_once_are_refused(self, service: Service) -> None:
        with service.backups.locked(), pytest.raises(BackupError, match="Another backup or restore"):
            service.back_up()

    def test_into_a_directory_with_other_files_is_refused(self, service: Service) -> None:
        service.backups.root.mkdir()
        (service.backups.root / "thesis.tex").touch()
        with pytest.raises(BackupError, match="neither empty nor a directory of backups"):
            service.back_up()

    def test_of_a_database_without_tables_is_refused(self, service: Service, blank_database_url: str) -> None:
        service.url = blank_database_url
        with pytest.raises(BackupError, match="nothing to back up"):
            service.back_up()


class TestRestore:
    @pytest.fixture
    def target(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(tmp_path / "target")

    def test_gives_the_same_rows_and_bytes(
        self, service: Service, blank_database_url: str, target: LocalStorage
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

    def test_of_a_backup_of_a_restored_service_gives_the_same_again(
        self, service: Service, blank_database_url: str, target: LocalStorage, tmp_path: Path
    ) -> None:
        restore.restore(blank_database_url, target, service.backups, service.back_up().manifest, lambda _: None)
        engine, again = make_engine(blank_database_url), BackupRepository(tmp_path / "again")
        manifest = backup.back_up(blank_database_url, target, again, [], lambda _: None).manifest
        before = contents(engine, target)
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        restore.restore(blank_database_url, LocalStorage(tmp_path / "last"), again, manifest, lambda _: None)
        assert contents(engine, LocalStorage(tmp_path / "last")) == before == contents(service.engine, service.storage)
        engine.dispose()

    def test_over_a_used_database_or_storage_is_refused(
        self, service: Service, blank_database_url: str, target: LocalStorage
    ) -> None:
        manifest = service.back_up().manifest
        with pytest.raises(BackupError, match="The database is not empty"):
            restore.restore(service.url, target, service.backups, manifest, lambda _: None)
        put_bytes(target, "files/foreign", b"x")
        with pytest.raises(BackupError, match="such as files/foreign"):
            restore.restore(blank_database_url, target, service.backups, manifest, lambda _: None)

    def test_of_a_damaged_backup_is_refused(
        self, service: Service, blank_database_url: str, target: LocalStorage
    ) -> None:
        manifest, key = service.back_up().manifest, service.a_key()
        service.backups.path(key).write_bytes(b"other")
        with pytest.raises(BackupError, match="has changed on disk"):
            restore.restore(blank_database_url, target, service.backups, manifest, lambda _: None)
        (service.backups.backups / manifest.name / "database.dump").write_bytes(b"")
        with pytest.raises(BackupError, match="has changed on disk"):
            restore.check_restorable(service.backups, None, may_migrate=False)

    def test_of_an_unknown_name_lists_those_that_exist(self, service: Service) -> None:
        name = service.back_up().manifest.name
        with pytest.raises(BackupError, match=name):
            service.backups.manifest("yesterday")


class TestIntegrity:
    def test_of_a_sound_service_finds_nothing(self, service: Service) -> None:
        assert service.check() == []

    def test_names_missing_and_damaged_objects(self, service: Service) -> None:
        key = service.a_key()
        content = service.path(key).read_bytes()
        service.path(key).write_bytes(content[:-1] + b"#")
        assert service.check() == [(key, "wrong content", None)]
        service.path(key).write_bytes(content[:-1])
        assert service.check() == [(key, "wrong size", None)]
        service.path(key).unlink()
        assert service.check(repair=True) == [(key, "missing", None)]

    def test_restores_damaged_objects_from_a_backup(self, service: Service) -> None:
        service.back_up()
        key = service.a_key()
        service.path(key).write_bytes(b"damaged")
        assert service.check(repair=True, backups=True) == [(key, "wrong size", "restored from the backup")]
        assert service.check() == []

    def test_deletes_old_objects_that_no_row_names(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        put_bytes(service.storage, "files/orphan", b"x")
        assert service.check() == []  # too young: its row may follow
        monkeypatch.setattr(integrity, "MIN_ORPHAN_AGE_SECONDS", -1)
        assert service.check() == [("files/orphan", "no row", None)]
        assert service.check(repair=True) == [("files/orphan", "no row", "deleted")]
        assert service.check() == []

    def test_an_object_deleted_with_its_row_during_the_check_is_no_finding(self, service: Service) -> None:
        key = service.a_key()
        found = integrity.check(service.engine, service.storage, True, False, None)
        service.path(key).unlink()
        with transaction(service.sessions) as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(delete(File).where(File.storage_key == key))
        assert list(found) == []
