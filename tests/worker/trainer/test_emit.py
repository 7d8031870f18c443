from __future__ import annotations

import os

import pytest

from app.domain.events import Done, Failed, Message, Stopped, parse_record
from app.domain.states import Reason
from worker.trainer import emit
from worker.trainer.emit import Ledger, RecordStream


class TestRecordStream:
    def test_a_record_is_one_line_of_json_that_the_parent_can_read(self) -> None:
        reading, writing = os.pipe()
        RecordStream(writing)(Message(run_id="a", message="two\nlines, 1 % of ü"))
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            (line,) = file.readlines()
        assert parse_record(line) == Message(run_id="a", message="two\nlines, 1 % of ü")


class TestPulse:
    def test_a_run_that_is_long_at_something_says_that_it_lives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[object] = []
        beat = Ledger(said.append).pulse("a")
        beat("reading")
        assert said == []
        monkeypatch.setattr(emit, "SILENCE_SECONDS", 0.0)
        beat("reading")
        assert said == [Message(run_id="a", message="Still reading.")]


class TestLedger:
    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            (Done(run_id="a", step=1, trained_tokens=1, directory="d"), Reason.DONE),
            (Stopped(run_id="a", reason=Reason.PAUSED, step=1), Reason.PAUSED),
            (Failed(run_id="a", reason=Reason.OUT_OF_MEMORY, message="m"), Reason.OUT_OF_MEMORY),
        ],
    )
    def test_remembers_how_a_run_ended(self, record: Done | Stopped | Failed, reason: Reason) -> None:
        said: list[object] = []
        ledger = Ledger(said.append)
        ledger(Message(run_id="a", message="m"))
        assert ledger.endings == {}
        ledger(record)
        assert ledger.endings == {"a": reason}
        assert said[-1] == record

    def test_nothing_may_follow_a_last_record(self) -> None:
        ledger = Ledger(lambda record: None)
        ledger(Stopped(run_id="a", reason=Reason.DRAINED, step=1))
        with pytest.raises(AssertionError):
            ledger(Message(run_id="a", message="m"))
