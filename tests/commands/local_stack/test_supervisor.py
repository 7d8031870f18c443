"""The supervisor with real children."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli.local_stack import services as module
from app.cli.local_stack.processes import ChildProcess
from app.cli.local_stack.services import ServiceSupervisor, StopRequested, StopSignal
from tests.deadline import until

WAIT = "import time; time.sleep(600)"


class Stage:
    """A supervisor that runs in this thread, and the lines that it printed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.lines: list[str] = []
        self.stop = StopSignal()
        self.supervisor = ServiceSupervisor(self.stop, self.lines.append)

    def service(self, name: str, code: str, **options: Any) -> ChildProcess:
        command, log = [sys.executable, "-c", code], self.place / f"{name}.log"
        return ChildProcess(name, command, log, self.place, dict(os.environ), **options)

    def ask_to_stop(self) -> None:
        self.stop._on_signal(signal.SIGTERM, None)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


class TestWatch:
    def test_a_crashed_service_is_started_again_with_growing_pauses(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
        service = stage.service("x", "raise SystemExit(3)")
        service.restart_delay_seconds = 0.05
        stage.supervisor.start(service)
        restarts: list[int] = []

        def changed() -> None:
            restarts.append(1)
            if len(restarts) == 2:
                stage.ask_to_stop()

        stage.supervisor.watch(changed)
        stage.supervisor.stop()
        assert service.restart_delay_seconds >= 0.2
        assert sum("exit code 3" in line for line in stage.lines) >= 2


class TestStop:
    def test_services_stop_group_by_group_in_the_given_order(self, stage: Stage) -> None:
        note = "import signal, sys, time\ndef bye(*_):\n  open('order', 'a').write({0!r}); sys.exit()\n"
        note += "signal.signal(15, bye); print(1, flush=True); time.sleep(600)"
        for name, group in ("a", 1), ("b", 2), ("c", 0):
            stage.supervisor.start(stage.service(name, note.format(name), stop_group=group))
        for name in "abc":
            until((stage.place / f"{name}.log").read_text, "its line")
        stage.supervisor.stop()
        assert (stage.place / "order").read_text() == "cab"

    @pytest.mark.parametrize(("stop_seconds", "signals"), [(0.3, 0), (600, 2)], ids=["grace period", "second signal"])
    def test_a_service_that_ignores_the_request_is_killed(
        self, stage: Stage, stop_seconds: float, signals: int
    ) -> None:
        stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); " + WAIT
        stage.supervisor.start(stage.service("x", stubborn, stop_seconds=stop_seconds))
        until((stage.place / "x.log").read_text, "its line")
        for _ in range(signals):
            stage.ask_to_stop()
        stage.supervisor.stop()
        assert stage.supervisor.pids == {"x": None}

    def test_nothing_is_started_once_a_signal_has_come(self, stage: Stage) -> None:
        stage.ask_to_stop()
        with pytest.raises(StopRequested):
            stage.supervisor.start(stage.service("x", WAIT))
        assert stage.supervisor.pids == {}
