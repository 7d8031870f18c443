"""A hint to the disk: whatever it is given, the bytes stay what they are."""

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


def test_of_what_is_no_file_is_no_error() -> None:
    begin_writeback(-1, 0, 1)


def test_is_left_out_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "_sync_file_range", None)
    begin_writeback(-1, 0, 1)
