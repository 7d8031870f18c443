"""A slot: hints and polls wake one thread; its lock; which errors end it. test_leases.py has the reaping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.exc import OperationalError

from tests.deadline import until
from tests.worker.worker_harness import WorkerHarness
from worker.node.slot import Slot, try_lock
from worker.node.worker_node import slot_name

NAME = "gpu0@test"


class Work:
    """Counts the calls of `run_next`; runs `jobs` jobs."""

    def __init__(self) -> None:
        self.calls = 0
        self.jobs = 0
        self.running = 0
        self.max_running = 0
        self.error: Exception | None = None
        self.may_end = threading.Event()
        self.may_end.set()

    def run_next(self) -> bool:
        self.calls += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if not self.jobs:
            return False
        self.jobs -= 1
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        self.may_end.wait(10)
        self.running -= 1
        return True


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def make_slot(harness: WorkerHarness, work: Work) -> Iterator[Callable[[], Slot]]:
    slots_started: list[Slot] = []

    def make() -> Slot:
        slots_started.append(Slot(harness.resources, "gpu", NAME, lambda owner: work.run_next))
        slots_started[-1].start()
        return slots_started[-1]

    yield make
    harness.resources.stop.set()
    work.may_end.set()
    for slot in slots_started:
        slot.wake()
        assert slot.join(10)


def test_a_slot_finds_work_by_its_own_poll(harness: WorkerHarness, work: Work, make_slot: Callable[[], Slot]) -> None:
    make_slot()
    until(lambda: work.calls, "the first poll")
    work.jobs = 3
    until(lambda: work.jobs == 0, "the poll")


def test_a_hint_is_faster_than_the_poll(harness: WorkerHarness, work: Work, make_slot: Callable[[], Slot]) -> None:
    harness.resources.settings.poll_seconds = 60.0
    slot = make_slot()
    until(lambda: work.calls, "the first poll")
    work.jobs = 3
    slot.run_until_idle()
    assert work.jobs == 0


def test_duplicate_hints_never_run_two_jobs_at_once(
    harness: WorkerHarness, work: Work, make_slot: Callable[[], Slot]
) -> None:
    slot = make_slot()
    work.jobs = 20
    threads = [threading.Thread(target=slot.run_until_idle) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (work.jobs, work.max_running) == (0, 1)


def test_a_hint_returns_when_the_slot_is_idle(
    harness: WorkerHarness, work: Work, make_slot: Callable[[], Slot]
) -> None:
    """It occupies Celery's only thread, so further hints go to idle workers."""
    slot = make_slot()
    work.may_end.clear()
    work.jobs = 1
    hint = threading.Thread(target=slot.run_until_idle)
    hint.start()
    until(lambda: work.running, "the job")
    assert hint.is_alive()
    work.may_end.set()
    hint.join(5)
    assert not hint.is_alive()


@pytest.mark.parametrize("error", [OperationalError("", {}, OSError()), ZeroDivisionError()], ids=["database", "bug"])
def test_a_slot_survives_every_error_of_a_job(
    harness: WorkerHarness, work: Work, make_slot: Callable[[], Slot], error: Exception
) -> None:
    work.error = error
    slot = make_slot()
    until(lambda: work.calls >= 2, "another poll")
    assert slot.is_alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_slot_that_cannot_reap_stops_its_heartbeat(
    harness: WorkerHarness, make_slot: Callable[[], Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [ZeroDivisionError(), OperationalError("", {}, OSError())]

    def fail(*_: object, **__: object) -> None:
        raise errors.pop()

    monkeypatch.setattr("worker.node.slot.leases.lock_all", fail)
    slot = make_slot()
    until(lambda: not slot.is_alive, "its end")
    assert errors == []  # it survived the database's


def test_a_slot_stops_when_stop_is_set(harness: WorkerHarness, make_slot: Callable[[], Slot]) -> None:
    harness.resources.settings.poll_seconds = 60.0
    slot = make_slot()
    harness.resources.stop.set()
    slot.wake()
    assert slot.join(5)
    slot.run_until_idle()  # a hint after the stop returns, too


def test_a_second_process_of_a_slot_waits_for_the_first(
    harness: WorkerHarness, work: Work, make_slot: Callable[[], Slot]
) -> None:
    job = harness.create_queued_job()
    harness.claim(f"{NAME}#alive")
    path = harness.resources.settings.data_dir / "run" / f"{NAME}.lock"
    with try_lock(path) as held:
        assert held is not None
        slot = make_slot()
        assert not slot.join(0.3)
        assert (work.calls, harness.job(job).state) == (0, "running")
    until(lambda: work.calls, "its lock")
    assert harness.job(job).state == "queued"


def test_slots_of_one_process_have_different_names() -> None:
    assert slot_name("gpu", "gpu0@host") == "gpu0@host"
    assert slot_name("cpu", "gpu0@host") == "cpu.gpu0@host"
