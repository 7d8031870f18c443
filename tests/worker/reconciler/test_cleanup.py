"""The reconciler's cleanup: uploads that have ended, objects without a row, staged files."""

from __future__ import annotations

import errno
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from app.db import files
from app.db.engine import transaction
from app.db.jobs import checkpoints
from app.db.tables import Base, File, Job, RetentionRule, Upload, UploadPart
from app.domain.operations.retention import RetentionKind
from app.storage import StorageError
from tests.factories import add_part, make_file, make_upload, put_bytes
from tests.worker.worker_harness import WorkerHarness
from worker.reconciler import cleanup


def stored_upload(harness: WorkerHarness, content: bytes = b"part", **columns: Any) -> tuple[str, str]:
    """An upload with one part in storage: its id, and the part's key."""
    with transaction(harness.sessions) as session:
        upload = make_upload(session, harness.project, bytes=len(content), **columns)
        key = f"uploads/{upload.id}/part"
        put_bytes(harness.resources.storage, key, content)
        add_part(session, upload, content, key)
    return upload.id, key


def end_at(harness: WorkerHarness, upload_id: str, seconds_ago: float) -> None:
    with transaction(harness.sessions) as session:
        moment = func.clock_timestamp() - timedelta(seconds=seconds_ago)
        session.execute(update(Upload).where(Upload.id == upload_id).values(expires_at=moment))


def is_stored(harness: WorkerHarness, key: str) -> bool:
    try:
        return harness.resources.storage.stat(key).size_bytes >= 0
    except FileNotFoundError:
        return False


class TestUploads:
    def test_overdue_uploads_expire_and_their_parts_are_deleted(self, harness: WorkerHarness) -> None:
        over, over_key = stored_upload(harness)
        completing, completing_key = stored_upload(harness)
        pending, pending_key = stored_upload(harness)
        end_at(harness, over, files.COMPLETION_GRACE_SECONDS + 1)
        end_at(harness, completing, files.COMPLETION_GRACE_SECONDS - 60)
        cleanup.clean_up(harness.resources)
        with transaction(harness.sessions) as session:
            status = {upload.id: upload.status for upload in session.scalars(select(Upload))}
            left = set(session.scalars(select(UploadPart.upload_id)))
        assert status == {over: "expired", completing: "pending", pending: "pending"}
        assert left == {completing, pending}
        assert [is_stored(harness, key) for key in (over_key, completing_key, pending_key)] == [False, True, True]

    def test_the_parts_of_cancelled_and_completed_uploads_are_deleted_and_the_file_is_kept(
        self, harness: WorkerHarness
    ) -> None:
        cancelled_id, cancelled_key = stored_upload(harness)
        upload_id, key = stored_upload(harness, b"content")
        harness.resources.storage.compose("files/file-composed", [key, key])
        with transaction(harness.sessions) as session:
            columns = {"purpose": "batch", "filename": "a", "bytes": 14, "sha256": "0" * 64}
            row = File(project_id=harness.project.id, storage_key="files/file-composed", **columns)
            file = files.insert(session, row)
            upload = session.get_one(Upload, upload_id)
            upload.status, upload.file_id = "completed", file.id
            session.get_one(Upload, cancelled_id).status = "cancelled"
        cleanup.purge_upload_parts(harness.resources)
        assert [is_stored(harness, each) for each in (cancelled_key, key)] == [False, False]
        with harness.resources.storage.open("files/file-composed") as stored:
            assert stored.read() == b"contentcontent"


class TestOrphans:
    def test_orphans_are_deleted_and_objects_with_a_row_are_kept(self, harness: WorkerHarness) -> None:
        storage = harness.resources.storage
        job = harness.create_queued_job()
        _, part_key = stored_upload(harness)
        orphans = ["files/file-lost", "jobs/ftjob-lost/attempts/1/adapter.tar", "uploads/upload_lost/part_1"]
        for key in (*orphans, f"jobs/{job.id}/attempts/1/snapshots/s", "a-prefix/of/a/later/day"):
            put_bytes(storage, key, b"x")
        storage.compose("files/file-lost-too", orphans)
        with transaction(harness.sessions) as session:
            deleted = make_file(session, storage, harness.project, filename="deleted, and its bytes are still there")
            purged = make_file(session, storage, harness.project)
            for file in (deleted, purged):
                files.delete(session, file)
            files.mark_purged(session, purged)
            snapshot_keys = {"s": f"jobs/{job.id}/attempts/1/snapshots/s"}
            checkpoints.add_snapshot(session, session.get_one(Job, job.id), 1, "0" * 64, snapshot_keys)
        kept = [deleted.storage_key, harness.file(job.training_file_id).storage_key, part_key, *snapshot_keys.values()]
        assert cleanup.delete_orphans(harness.resources) == 0  # all of them are younger than a day
        assert cleanup.delete_orphans(harness.resources, older_than_seconds=-60) == 5
        assert [key for key in (*orphans, "files/file-lost-too", purged.storage_key) if is_stored(harness, key)] == []
        assert [key for key in (*kept, "a-prefix/of/a/later/day") if not is_stored(harness, key)] == []

    def test_they_are_deleted_without_the_right_to_list_uploads(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> int:
            raise StorageError(errno.EACCES, "the bucket refuses access (AccessDenied)")

        put_bytes(harness.resources.storage, "files/file-lost", b"x")
        monkeypatch.setattr(type(harness.resources.storage), "delete_unfinished", refuse)
        with pytest.raises(StorageError, match="AccessDenied"):
            cleanup.delete_orphans(harness.resources, older_than_seconds=-60)
        assert not is_stored(harness, "files/file-lost")

    def test_every_table_with_storage_keys_is_read(self) -> None:
        """A new table in this set must be read by `delete_orphans`, or keep its objects below another prefix."""
        naming = {
            table.name
            for table in Base.metadata.tables.values()
            for name in (column.name for column in table.columns)
            if "storage_key" in name
        }
        assert naming == {File.__tablename__, "job_tokens", "snapshots", UploadPart.__tablename__}


def test_what_killed_processes_have_staged_is_deleted_and_what_the_disk_refuses_keeps_no_other(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = harness.resources.storage.staging
    (staging / "compose").mkdir()
    for name in ("compose/.000000", "a", "b", "c", "of-a-living-process"):
        (staging / name).write_bytes(b"x")
    for name in ("compose", "a", "b", "c"):
        os.utime(staging / name, (time.time() - 3700, time.time() - 3700))
    unlink = Path.unlink

    def fail(self: Path, missing_ok: bool = False) -> None:
        if self.name == "b":
            raise OSError(errno.EIO, "Input/output error")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", fail)
    cleanup.delete_staged_files(staging)
    assert sorted(path.name for path in staging.iterdir()) == ["b", "of-a-living-process"]


def test_retention_rules_are_applied_until_nothing_is_due(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.operations.retention.BATCH", 2)
    with transaction(harness.sessions) as session:
        old = [make_file(session, harness.resources.storage, harness.project) for _ in range(3)]
        session.execute(update(File).values(created_at=text("clock_timestamp() - interval '100 days'")))
        recent = make_file(session, harness.resources.storage, harness.project)
    cleanup.apply_retention(harness.resources)
    assert all(harness.file(file.id).deleted_at is None for file in old)
    with transaction(harness.sessions) as session:
        session.add(RetentionRule(project_id=harness.project.id, kind=RetentionKind.FILES, days=90))
    cleanup.apply_retention(harness.resources)
    assert all(harness.file(file.id).deleted_at is not None for file in old)
    assert harness.file(recent.id).deleted_at is None
