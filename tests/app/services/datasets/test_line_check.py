from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import InvalidDataset, Unavailable
from app.services.datasets.check_process import CheckProcess
from app.services.files import files
from app.services.files.files import count_lines
from tests.factories import chat_lines

Opened = Callable[[bytes], io.BufferedIOBase]


@pytest.fixture(params=["in this process", "in a child, from a file", "in a child, through a pipe"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], int]:
    """`check(content)` in each of the ways; the size decides, and here the test says it."""

    def run(content: bytes) -> int:
        size = 0 if request.param == "in this process" else files.MAX_IN_PROCESS_BYTES + 1
        if request.param == "in a child, from a file":
            (tmp_path / "lines").write_bytes(content)
            with (tmp_path / "lines").open("rb") as file:
                return count_lines(file, size, 1000, CheckProcess())
        return count_lines(io.BufferedReader(io.BytesIO(content)), size, 1000, CheckProcess())  # type: ignore[arg-type]

    return run


class TestEveryWay:
    def test_counts_the_examples(self, check: Callable[[bytes], int]) -> None:
        assert check(b"\n" + chat_lines(7) + b"\r\n") == 7

    def test_names_ten_bad_lines_at_once(self, check: Callable[[bytes], int]) -> None:
        with pytest.raises(InvalidDataset) as refused:
            check(chat_lines(2) + b"x\n" * 2_000)
        assert all(f"Line {number}: " in refused.value.message for number in range(3, 13))
        assert "Line 13" not in refused.value.message

    def test_refuses_a_line_that_is_too_long_and_a_file_without_any(self, check: Callable[[bytes], int]) -> None:
        with pytest.raises(InvalidDataset, match="longer than 1,000"):
            check(b'{"a": "' + b"x" * 2_000 + b'"}\n')
        with pytest.raises(InvalidDataset, match="empty"):
            check(b"\n\n")


def test_a_child_that_was_killed_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "check_lines", os._exit)
    (tmp_path / "lines").write_bytes(chat_lines())
    with (tmp_path / "lines").open("rb") as file, pytest.raises(Unavailable, match="interrupted"):
        count_lines(file, 1 << 20, 1 << 20, CheckProcess())
