"""A check ends with its request and its time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from app.errors import Unavailable
from app.services.datasets.check_process import CheckCancelledError, CheckProcess
from app.services.files import files
from app.services.files.files import check_lines
from tests.deadline import until
from tests.factories import chat_lines
from tests.limited import limited_processes

ENDLESS = Path("/dev/zero")  # `check_lines` reads it without an end


def run(check: CheckProcess, seconds: float | None = None) -> tuple[int, list[str]]:
    with ENDLESS.open("rb") as file:
        return check.run(check_lines, 1000, files=[file], deadline_seconds=seconds)


def test_ends_when_its_time_is_over() -> None:
    before = limited_processes()
    with pytest.raises(TimeoutError):
        run(CheckProcess(), seconds=0.2)
    assert limited_processes() <= before


def test_a_cancel_ends_the_process() -> None:
    check, raised, before = CheckProcess(), [], limited_processes()

    def work() -> None:
        try:
            run(check)
        except CheckCancelledError:
            raised.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: limited_processes() - before, "the process", seconds=30)
    check.cancel()
    thread.join(30)
    assert raised
    assert limited_processes() <= before


def test_a_cancel_before_its_start_lets_it_not_start() -> None:
    check = CheckProcess()
    check.cancel()
    with pytest.raises(CheckCancelledError):
        run(check)


def test_a_child_that_was_killed_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "check_lines", os._exit)
    (tmp_path / "lines").write_bytes(chat_lines())
    with (tmp_path / "lines").open("rb") as file, pytest.raises(Unavailable, match="interrupted"):
        files.count_lines(file, 1 << 20, 1 << 20, CheckProcess())
