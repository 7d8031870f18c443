from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from app.cli.client import polling


class Phases:
    """A server whose export is in these phases, one after the other; None: it has ended."""

    def __init__(self, *phases: str | None) -> None:
        self.rows = [{"phase": phase} for phase in phases]

    def get(self, _path: str) -> dict[str, Any]:
        return self.rows.pop(0)


def test_each_note_is_printed_once_also_that_of_the_created_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(polling, "POLL_SECONDS", 0)
    client: Any = Phases("first", "second", "second", "", "second", None)
    polling.poll(client, "path", {"phase": "first"}, lambda row: row["phase"] is not None, lambda row: row["phase"])
    assert capsys.readouterr().err.split() == ["first", "second"]
    assert client.rows == []


def test_a_countdown_is_printed_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log, and the context of an agent, keep every line."""
    monkeypatch.setattr(polling, "POLL_SECONDS", 0)
    seconds = count()
    monkeypatch.setattr(polling.time, "monotonic", lambda: next(seconds))
    client: Any = Phases(*(f"{left} s left" for left in range(24, 0, -1)), "ends", None)
    polling.poll(client, "path", {"phase": "25 s left"}, lambda row: row["phase"] is not None, lambda row: row["phase"])
    assert capsys.readouterr().err.splitlines() == ["25 s left", "15 s left", "5 s left", "ends"]
