from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.tables import File, Project
from app.services.datasets.check_process import CheckProcess
from app.services.files import files
from app.services.files.files import STALE_AFTER_SECONDS, StagedFile, delete_stale_staged_files, ingest_file, new_file
from app.storage import LocalStorage
from tests.factories import chat_lines


@pytest.fixture
def staged(storage: LocalStorage) -> StagedFile:
    staged = StagedFile(storage.staging, max_bytes=1 << 20)
    staged.write(chat_lines())
    return staged


class TestStagedFile:
    def test_starts_writeback_of_every_byte_but_the_last_few_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handed: list[tuple[int, int]] = []
        monkeypatch.setattr(files, "begin_writeback", lambda _, start, size: handed.append((start, size)))
        monkeypatch.setattr(files, "WRITEBACK_BYTES", 10)
        staged = StagedFile(tmp_path, max_bytes=100)
        for size in (4, 5, 3, 25, 9):
            staged.write(b"x" * size)
        assert handed == [(0, 12), (12, 25)]
        staged.discard()


class TestIngestFile:
    def test_keeps_the_bytes_when_the_answer_to_the_commit_was_lost(
        self,
        sessions: Sessions,
        storage: LocalStorage,
        project: Project,
        staged: StagedFile,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        @contextmanager
        def losing_the_answer(sessions: Sessions) -> Iterator[Session]:
            with transaction(sessions) as session:
                yield session
            raise OperationalError("COMMIT", {}, Exception("connection lost"))

        monkeypatch.setattr("app.services.files.files.transaction", losing_the_answer)
        file = new_file(project.id, "fine-tune", "a.jsonl")
        with pytest.raises(OperationalError):
            ingest_file(sessions, storage, file, None, staged, 1 << 20, CheckProcess())
        with transaction(sessions) as session:
            stored = session.scalars(select(File)).one()
        assert storage.stat(stored.storage_key).size_bytes == stored.bytes


class TestDeleteStaleStagedFiles:
    def test_removes_only_what_a_killed_process_left_long_ago(self, storage: LocalStorage) -> None:
        old, new = StagedFile(storage.staging, 10), StagedFile(storage.staging, 10)
        for staged in (old, new):
            staged.close()
        long_ago = time.time() - STALE_AFTER_SECONDS - 1
        os.utime(old.path, (long_ago, long_ago))
        other = storage.staging / "of-somebody-else"
        other.touch()
        os.utime(other, (long_ago, long_ago))
        delete_stale_staged_files(storage)
        assert {path.name for path in storage.staging.iterdir()} == {new.path.name, other.name}
