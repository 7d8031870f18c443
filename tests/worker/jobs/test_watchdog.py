"""The watchdog's reasons to stop a trainer, one check at a time: no thread, no clock, no database."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.domain.jobs.events import Command
from app.domain.jobs.states import Desired
from app.settings import Settings
from worker.jobs.child_program import Watchdog

SETTINGS = Settings(
    database_url="postgresql://nowhere",
    redis_url="redis://nowhere",
    self_fence_seconds=240,
    self_fence_kill_seconds=270,
    stall_seconds=600,
    drain_grace_seconds=100,
    stop_grace_seconds=60,
)


@dataclass
class FakeProcess:
    silent_seconds: float = 0.0
    median_step_seconds: float = 0.0
    final_at: float | None = None
    actions: list[str] = field(default_factory=list)

    def send_command(self, command: Command) -> None:
        self.actions.append(command.value)

    def drain(self) -> None:
        self.actions.append("drain")

    def kill(self) -> None:
        self.actions.append("kill")


@dataclass
class FakeKeeper:
    fenced: bool = False
    unconfirmed_seconds: float = 0.0
    desired: Desired = Desired.RUN
    preempt_requested: bool = False

    def mark_lost(self, why: str, cause: str = "fenced") -> None:
        self.fenced = True


@dataclass
class WatchdogSetup:
    process: FakeProcess = field(default_factory=FakeProcess)
    keeper: FakeKeeper = field(default_factory=FakeKeeper)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.watchdog = Watchdog(self.process, self.keeper, self.stop, SETTINGS)  # type: ignore[arg-type]

    def check(self) -> list[str]:
        self.watchdog.check()
        return self.process.actions


@pytest.fixture
def setup() -> WatchdogSetup:
    return WatchdogSetup()


@pytest.mark.parametrize(
    ("process", "keeper", "actions"),
    [
        ({}, {}, []),
        ({}, {"fenced": True}, ["kill"]),
        ({"silent_seconds": 601}, {}, ["kill"]),
        ({"silent_seconds": 1999, "median_step_seconds": 100}, {}, []),
        ({"silent_seconds": 2001, "median_step_seconds": 100}, {}, ["kill"]),
        ({}, {"desired": Desired.PAUSE}, ["pause"]),
        ({}, {"preempt_requested": True}, ["drain"]),
        ({}, {"preempt_requested": True, "desired": Desired.PAUSE}, ["pause"]),
    ],
    ids=[
        "healthy",
        "a lost lease",
        "silent",
        "silent for 19 steps",
        "silent for 20 steps",
        "a pause",
        "preemption",
        "a pause and preemption",
    ],
)
def test_the_watchdog_stops_a_program(
    setup: WatchdogSetup, process: dict[str, Any], keeper: dict[str, Any], actions: list[str]
) -> None:
    """Commands are sent once and have no deadline; a kill is repeated."""
    vars(setup.process).update(process)
    vars(setup.keeper).update(keeper)
    for _ in range(3):
        setup.check()
    assert setup.process.actions == (actions if actions != ["kill"] else ["kill"] * 3)
    assert setup.watchdog.drain_requested_at is None
    assert setup.watchdog.stalled == ("silent_seconds" in process and actions == ["kill"])


def test_without_renewals_it_is_drained_then_killed_before_the_lease_expires(setup: WatchdogSetup) -> None:
    setup.keeper.unconfirmed_seconds = 239
    assert setup.check() == []
    setup.keeper.unconfirmed_seconds = 241
    assert setup.check() == ["drain"]
    assert setup.watchdog.self_fenced
    assert not setup.keeper.fenced
    setup.keeper.unconfirmed_seconds = 271
    assert setup.check() == ["drain", "kill"]
    assert setup.keeper.fenced
    assert SETTINGS.self_fence_kill_seconds < SETTINGS.lease_ttl_seconds


def test_a_shutdown_drains_once_and_kills_after_its_deadline(setup: WatchdogSetup) -> None:
    setup.stop.set()
    setup.check()
    assert setup.check() == ["drain"]
    assert not setup.watchdog.self_fenced
    setup.watchdog.drain_requested_at = time.monotonic() - 101
    assert setup.check() == ["drain", "kill"]


def test_a_shutdown_during_a_pause_drains(setup: WatchdogSetup) -> None:
    setup.keeper.desired = Desired.PAUSE
    setup.check()
    setup.stop.set()
    assert setup.check() == ["pause", "drain"]


def test_a_trainer_that_outlives_its_final_record_is_killed(setup: WatchdogSetup) -> None:
    setup.process.final_at = time.monotonic() - 59
    assert setup.check() == []
    setup.process.final_at = time.monotonic() - 61
    assert setup.check() == ["kill"]
    assert not setup.watchdog.stalled


def test_a_watchdog_that_fails_kills_the_trainer(setup: WatchdogSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(setup.watchdog, "check", fail)
    with setup.watchdog:
        deadline = time.monotonic() + 5
        while not setup.process.actions and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "kill" in setup.process.actions
