from __future__ import annotations

import os

import pytest

from app.domain.jobs.events import Done, Failed, Message, Stopped, parse_record
from app.domain.jobs.spec import RunSpec
from app.domain.jobs.states import Reason
from worker.trainer.runtime import records
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.records import RecordStream, RecordWriter


def writer(emitted: list[object]) -> RecordWriter:
    return RecordWriter(emitted.append, RunSpec.model_construct(run_id="a"))


class TestRecordStream:
    def test_a_record_is_one_line_of_json_that_the_parent_can_read(self) -> None:
        reading, writing = os.pipe()
        record = Message(run_id="a", message="two\nlines, 1 % of ü")
        RecordStream(writing)(record)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            (line,) = file.readlines()
        assert parse_record(line) == record


class TestKeepalive:
    def test_long_work_emits_an_event_that_the_run_is_alive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[object] = []
        beat = writer(said).keepalive
        beat("reading")
        assert said == []
        monkeypatch.setattr(records, "KEEPALIVE_SECONDS", 0.0)
        beat("reading")
        assert said == [Message(run_id="a", message="Still reading.")]


class TestRecordWriter:
    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            (Done(run_id="a", step=1, trained_tokens=1, directory="d"), Reason.DONE),
            (Stopped(run_id="a", reason=Reason.PAUSED, step=1), Reason.PAUSED),
            (Failed(run_id="a", reason=Reason.OUT_OF_MEMORY, message="m"), Reason.OUT_OF_MEMORY),
        ],
    )
    def test_the_ending_is_the_reason_of_the_last_record(self, record: Done | Stopped | Failed, reason: Reason) -> None:
        said: list[object] = []
        writes = writer(said)
        writes(Message(run_id="a", message="m"))
        assert writes.ending is None
        writes(record)
        assert writes.ending == reason
        assert said[-1] == record

    def test_an_error_ends_the_run_once(self) -> None:
        said: list[object] = []
        writes = writer(said)
        for text in ("first", "second"):
            with writes.fail_run_on_error():
                raise Failure(Reason.OUT_OF_MEMORY, text, "lora.r")
        assert said == [Failed(run_id="a", reason=Reason.OUT_OF_MEMORY, message="first", param="lora.r")]
