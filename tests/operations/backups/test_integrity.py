"""The check of every row against its bytes, on a real database and a local storage."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from sqlalchemy import delete, text

from app.db.engine import transaction
from app.db.operations.stored_objects import named_objects
from app.db.tables import File
from app.services.operations import integrity
from app.services.operations.backup_repository import BackupError
from app.storage import LocalStorage, StorageError
from tests.factories import put_bytes
from tests.operations.backups.conftest import INPUT_OUTPUT, BackedUpService

RESTORED = "restored from the backup"


class TestIntegrity:
    def test_a_damaged_object_is_kept_as_long_as_the_copy_in_the_backup_is_damaged_too(
        self, service: BackedUpService
    ) -> None:
        service.back_up()
        key = service.a_key()
        service.backups.path(key).write_bytes(b"damaged in the backup")
        service.path(key).write_bytes(b"damaged")
        with transaction(service.sessions) as session:
            other = session.scalars(text("SELECT storage_key FROM files ORDER BY seq DESC LIMIT 1")).one()
        service.path(other).unlink()
        first, second = integrity.check(service.engine, service.storage, True, True, service.backups)
        assert (first.key, first.repaired) == (key, None)
        assert first.failure is not None
        assert "has changed" in first.failure
        assert (second.key, second.repaired) == (other, RESTORED)
        assert service.path(key).read_bytes() == b"damaged"

    def test_the_check_goes_on_after_an_object_that_cannot_be_read(self, service: BackedUpService) -> None:
        service.back_up()
        key = service.a_key()
        service.fail_to_read(key)
        unreadable = f"cannot be read: {INPUT_OUTPUT.strerror}"
        assert service.check() == [(key, unreadable, None)]
        assert service.check(repair=True, backups=True) == [(key, unreadable, RESTORED)]

    def test_the_check_ends_if_the_bucket_does_not_answer(self, service: BackedUpService) -> None:
        service.fail_to_read(service.a_key(), StorageError(errno.EIO, "the bucket does not answer"))
        with pytest.raises(StorageError):
            service.check()

    def test_the_check_keeps_an_object_whose_row_was_committed_during_the_check(
        self, service: BackedUpService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(integrity, "MIN_ORPHAN_AGE_SECONDS", -1)
        ends = iter((1, None))
        monkeypatch.setattr(integrity, "named_objects", lambda found: list(named_objects(found))[: next(ends)])
        assert service.check(repair=True) == []

    def test_a_repair_deletes_nothing_in_the_storage_of_another_service(
        self, service: BackedUpService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(integrity, "MIN_ORPHAN_AGE_SECONDS", -1)
        service.storage = LocalStorage(tmp_path / "other")
        put_bytes(service.storage, "files/foreign", b"x")
        assert service.check()[-1] == ("files/foreign", "no row", None)
        with pytest.raises(BackupError, match="Nothing was deleted"):
            service.check(repair=True)
        assert service.path("files/foreign").exists()

    def test_a_repair_deletes_old_objects_that_no_row_names(
        self, service: BackedUpService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_bytes(service.storage, "files/orphan", b"x")
        assert service.check() == []  # too young: its row may follow
        monkeypatch.setattr(integrity, "MIN_ORPHAN_AGE_SECONDS", -1)
        assert service.check() == [("files/orphan", "no row", None)]
        assert service.check(repair=True) == [("files/orphan", "no row", "deleted")]
        assert service.check() == []

    def test_a_repair_names_an_orphan_that_the_disk_does_not_delete_and_goes_on(
        self, service: BackedUpService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in ("files/first", "files/second"):
            put_bytes(service.storage, key, b"x")
        delete_object = service.storage.delete

        def fail_once(key: str) -> None:
            if key == "files/first":
                raise OSError(errno.EIO, "Input/output error")
            delete_object(key)

        monkeypatch.setattr(service.storage, "delete", fail_once)
        monkeypatch.setattr(integrity, "MIN_ORPHAN_AGE_SECONDS", -1)
        found = {each.key: each for each in integrity.check(service.engine, service.storage, True, True, None)}
        assert (found["files/first"].repaired, found["files/first"].failure) == (None, "Input/output error")
        assert found["files/second"].repaired == "deleted"

    def test_an_object_deleted_with_its_row_during_the_check_is_no_finding(self, service: BackedUpService) -> None:
        key = service.a_key()
        found = integrity.check(service.engine, service.storage, True, False, None)
        service.path(key).unlink()
        with transaction(service.sessions) as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(delete(File).where(File.storage_key == key))
        assert list(found) == []
