from __future__ import annotations

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
