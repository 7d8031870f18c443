"""Early writeback never changes the content of a file, and never fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.storage import writeback
from app.storage.writeback import begin_writeback


def test_leaves_the_bytes_as_they_are(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        for number in range(4):
            file.write(bytes([number]) * 5000)
            begin_writeback(file.fileno(), 5000 * number, 5000)
        file.seek(0)
        assert file.read() == b"".join(bytes([number]) * 5000 for number in range(4))


def test_starts_the_writeback_of_the_range_and_ignores_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(writeback, "_sync_file_range", lambda *arguments: (calls.append(arguments), -1)[1])
    begin_writeback(7, 4096, 8192)
    assert calls == [(7, 4096, 8192, writeback.SYNC_FILE_RANGE_WRITE)]


def test_does_nothing_where_the_call_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "_sync_file_range", None)
    begin_writeback(-1, 0, 1)
