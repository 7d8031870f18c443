from __future__ import annotations

import io
import signal

import pytest

from app.domain.jobs.events import Command
from worker.trainer.runtime.stop import StopRequests


def stops_after(*lines: bytes) -> StopRequests:
    stops = StopRequests("a")
    stops.listen(io.BytesIO(b"".join(line + b"\n" for line in lines))).join()
    return stops


class TestStopRequests:
    def test_there_is_no_request_at_first(self) -> None:
        assert StopRequests("a").strongest is None

    def test_a_control_line_is_a_request(self) -> None:
        stops = stops_after(b'{"command": "pause", "run_id": "a"}')
        assert stops.strongest is Command.PAUSE

    def test_the_end_of_the_input_is_no_request(self) -> None:
        assert stops_after().strongest is None

    @pytest.mark.parametrize(
        "line", [b"", b"pause", b'{"command": "explode", "run_id": "a"}', b'{"command": "cancel"}']
    )
    def test_an_invalid_control_line_is_ignored_and_logged(
        self, line: bytes, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stops_after(line).strongest is None
        assert stops_after(line, b'{"command": "drain", "run_id": "a"}').strongest is Command.DRAIN
        assert "ignored" in capsys.readouterr().err

    def test_an_unknown_run_is_ignored_and_logged(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert stops_after(b'{"command": "cancel", "run_id": "z"}').strongest is None
        assert "'z'" in capsys.readouterr().err

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
