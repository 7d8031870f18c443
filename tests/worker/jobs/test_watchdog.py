"""Everything that may stop a trainer, one look at a time: no thread, no clock, no database."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from app.domain.jobs.events import Command
from app.domain.jobs.states import Desired
from app.settings import Settings
from worker.jobs.watchdog import Guard

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
class FakeChild:
    silent_seconds: float = 0.0
    median_step_seconds: float = 0.0
    final_at: float | None = None
    done: list[str] = field(default_factory=list)

    def tell(self, command: Command) -> None:
        self.done.append(command.value)

    def drain(self) -> None:
        self.done.append("drain")

    def kill(self) -> None:
        self.done.append("kill")


@dataclass
class FakeKeeper:
    fenced: bool = False
    unconfirmed_seconds: float = 0.0
    desired: Desired = Desired.RUN
    gives_way: bool = False

    def lose(self, why: str) -> None:
        self.fenced = True


@dataclass
class Scene:
    child: FakeChild = field(default_factory=FakeChild)
    keeper: FakeKeeper = field(default_factory=FakeKeeper)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.guard = Guard(self.child, self.keeper, self.stop, SETTINGS)  # type: ignore[arg-type]

    def look(self) -> list[str]:
        self.guard.look()
        return self.child.done


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_nothing_happens_while_all_is_well(scene: Scene) -> None:
    assert scene.look() == []


def test_a_fenced_holders_trainer_is_killed(scene: Scene) -> None:
    scene.keeper.fenced = True
    assert scene.look() == ["kill"]


def test_without_renewals_it_is_asked_first_and_killed_before_anybody_else_may_start(scene: Scene) -> None:
    scene.keeper.unconfirmed_seconds = 239
    assert scene.look() == []
    scene.keeper.unconfirmed_seconds = 241
    assert scene.look() == ["drain"]
    assert not scene.keeper.fenced
    scene.keeper.unconfirmed_seconds = 271
    assert scene.look() == ["drain", "kill"]
    assert scene.keeper.fenced
    assert SETTINGS.self_fence_kill_seconds < SETTINGS.lease_ttl_seconds


def test_a_silent_trainer_is_killed(scene: Scene) -> None:
    scene.child.silent_seconds = 601
    assert scene.look() == ["kill"]
    assert scene.guard.stalled


def test_twenty_steps_of_silence_are_allowed_however_slow_the_steps_are(scene: Scene) -> None:
    scene.child.silent_seconds, scene.child.median_step_seconds = 1999, 100
    assert scene.look() == []
    scene.child.silent_seconds = 2001
    assert scene.look() == ["kill"]


def test_a_shutdown_drains_once(scene: Scene) -> None:
    scene.stop.set()
    scene.look()
    assert scene.look() == ["drain"]


def test_a_drain_has_a_deadline(scene: Scene) -> None:
    scene.stop.set()
    scene.look()
    scene.guard.drain_asked_at = time.monotonic() - 101
    assert scene.look() == ["drain", "kill"]


def test_a_pause_is_told_once_and_has_none(scene: Scene) -> None:
    scene.keeper.desired = Desired.PAUSE
    for _ in range(3):
        scene.look()
    assert scene.child.done == ["pause"]
    assert scene.guard.pause_asked


def test_a_shutdown_during_a_pause_drains(scene: Scene) -> None:
    scene.keeper.desired = Desired.PAUSE
    scene.look()
    scene.stop.set()
    assert scene.look() == ["pause", "drain"]


def test_a_trainer_that_has_said_its_last_word_has_to_go(scene: Scene) -> None:
    scene.child.final_at = time.monotonic() - 59
    assert scene.look() == []
    scene.child.final_at = time.monotonic() - 61
    assert scene.look() == ["kill"]
    assert not scene.guard.stalled


def test_a_guard_that_fails_kills(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(scene.guard, "look", fail)
    with scene.guard:
        deadline = time.monotonic() + 5
        while not scene.child.done and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "kill" in scene.child.done


def test_giving_way_is_a_drain_by_word_and_without_a_deadline(scene: Scene) -> None:
    scene.keeper.gives_way = True
    scene.guard.look()
    scene.guard.look()
    assert (scene.child.done, scene.guard.yield_asked, scene.guard.drain_asked_at) == (["drain"], True, None)


def test_a_pause_outranks_giving_way(scene: Scene) -> None:
    scene.keeper.gives_way, scene.keeper.desired = True, Desired.PAUSE
    scene.guard.look()
    assert scene.child.done == ["pause"]
