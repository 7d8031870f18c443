"""Working time, requests to stop, and the caches of compiled products."""

from __future__ import annotations

import io
import signal
import tempfile
from pathlib import Path

import pytest

from app.domain.jobs.events import Begin, Command, Measured
from tests.trainer.helpers import float32_spec, run_trainer
from worker.trainer.__main__ import wait_for_work
from worker.trainer.runtime import process
from worker.trainer.runtime.process import StopRequests


def test_the_working_time_of_a_warm_trainer_starts_with_its_work(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test process counts as the warm trainer: it has run at least since torch was imported."""
    monkeypatch.setattr(process, "_work_started_at", None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    process_seconds = process.working_seconds()
    wait_for_work(io.BytesIO(Begin(work_directory=tmp_path).model_dump_json().encode() + b"\n"))
    assert process.working_seconds() < process_seconds
    _, log = run_trainer(float32_spec(tiny, examples, n_epochs=1), tmp_path)
    (measured,) = log.of(Measured)
    assert measured.seconds <= process.working_seconds()
    assert measured.seconds >= measured.step_seconds


def test_the_seconds_of_validations_and_steps_are_measured_separately(
    tiny: Path, examples: Path, tmp_path: Path
) -> None:
    _, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, n_epochs=1), tmp_path)
    (measured,) = log.of(Measured)
    assert 0 < measured.validation_seconds < measured.seconds - measured.step_seconds


def stops_after(*lines: bytes) -> StopRequests:
    stops = StopRequests("a")
    stops.listen(io.BytesIO(b"".join(line + b"\n" for line in lines))).join()
    return stops


class TestStopRequests:
    def test_a_control_line_is_a_request_and_the_end_of_the_input_is_none(self) -> None:
        assert stops_after().strongest is None
        assert stops_after(b'{"command": "pause", "run_id": "a"}').strongest is Command.PAUSE

    @pytest.mark.parametrize(
        "line", [b"", b'{"command": "explode", "run_id": "a"}', b'{"command": "cancel", "run_id": "z"}']
    )
    def test_an_invalid_control_line_is_ignored_and_logged(
        self, line: bytes, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stops_after(line, b'{"command": "drain", "run_id": "a"}').strongest is Command.DRAIN
        assert "ignored" in capsys.readouterr().err

    def test_cancel_outranks_pause_and_pause_outranks_drain_in_any_order(self) -> None:
        stops = StopRequests("a")
        stops.add(Command.PAUSE)
        stops.add(Command.DRAIN)
        assert stops.strongest is Command.PAUSE
        stops.add(Command.CANCEL)
        assert stops.strongest is Command.CANCEL

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_drains(self, number: signal.Signals) -> None:
        before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            stops = StopRequests("a")
            stops.handle_signals()
            signal.raise_signal(number)
            assert stops.strongest is Command.DRAIN
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
