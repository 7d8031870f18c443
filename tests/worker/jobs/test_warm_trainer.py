"""A trainer that waits before there is a job: it gets the next one, holds the slot's lock, and dies with its slot."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.bench import OWNER, Bench, is_alive, until
from worker.jobs.supervisor import Supervisor
from worker.jobs.trainer_process import TRAINER
from worker.jobs.warm_trainer import Spare
from worker.node.locks import try_lock
from worker.validation.validate import Validator

RUN = "ftjob-1"
WAITS = """
import json, os, sys, time
line = sys.stdin.readline()
print(json.dumps({"kind": "message", "run_id": "ftjob-1", "message": line.strip()}), flush=True)
time.sleep(60)
"""
DIES = "import sys; sys.exit('no torch here')"

Make = Callable[[str], Spare]


@pytest.fixture
def lock_path(tmp_path: Path) -> Path:
    return tmp_path / "gpu0.trainer.lock"


@pytest.fixture
def make(lock_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A slot's spare, whose command is a Python program, started at once."""
    monkeypatch.setattr("worker.jobs.warm_trainer.IDLE_SECONDS", 0.0)
    made: list[Spare] = []

    def make(program: str) -> Spare:
        made.append(Spare((sys.executable, "-c", program), lock_path, threads=1))
        return made[-1]

    yield make
    for spare in made:
        spare.close()


def start(spare: Spare) -> int:
    with spare.lock() as lock:
        assert lock is not None
        spare.keep_one(lock)
    assert spare.pid is not None
    return spare.pid


def is_free(lock_path: Path) -> bool:
    with try_lock(lock_path) as lock:
        return lock is not None


class TestTaking:
    def test_the_job_gets_the_process_that_waited(self, make: Make, tmp_path: Path) -> None:
        spare = make(WAITS)
        pid = start(spare)
        with spare.lock():
            child = spare.take(tmp_path, RUN)
            assert child is not None
            assert (child.pid, spare.pid) == (pid, None)
            record = next(child.records())
            assert str(tmp_path) in record.message
            child.close()

    def test_where_none_waits_there_is_none_to_take(self, make: Make, tmp_path: Path) -> None:
        spare = make(WAITS)
        with spare.lock() as lock:
            assert lock is not None
            assert spare.take(tmp_path, RUN) is None

    def test_one_that_waits_is_not_started_again(self, make: Make) -> None:
        spare = make(WAITS)
        assert start(spare) == start(spare)

    def test_it_is_not_started_where_nobody_wants_it(self, lock_path: Path) -> None:
        spare = Spare((sys.executable, "-c", WAITS), lock_path, threads=1, is_wanted=False)
        with spare.lock() as lock:
            assert lock is not None
            spare.keep_one(lock)
        assert spare.pid is None

    def test_it_is_not_started_in_the_moment_after_a_job(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spare = make(WAITS)
        monkeypatch.setattr("worker.jobs.warm_trainer.IDLE_SECONDS", 60.0)
        with spare.lock():
            spare.take(tmp_path, RUN)
        with spare.lock() as lock:
            assert lock is not None
            spare.keep_one(lock)
        assert spare.pid is None

    def test_it_is_not_started_in_the_first_moment_of_a_worker(self, lock_path: Path) -> None:
        spare = Spare((sys.executable, "-c", WAITS), lock_path, threads=1)
        with spare.lock() as lock:
            assert lock is not None
            spare.keep_one(lock)
        assert spare.pid is None

    def test_one_that_cannot_be_started_costs_nothing_but_itself(self, make: Make, lock_path: Path) -> None:
        spare = make(WAITS)
        lock_path.with_suffix(".spare").write_text("in the way")
        with spare.lock() as lock:
            assert lock is not None
            spare.keep_one(lock)
        assert spare.pid is None
        assert is_free(lock_path)


class TestDeath:
    def test_one_that_died_waiting_is_noticed_and_replaced(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.jobs.warm_trainer.PATIENCE_SECONDS", 0.0)
        spare = make(WAITS)
        first = start(spare)
        os.kill(first, signal.SIGKILL)
        until(lambda: not is_alive(first), "its end")
        assert start(spare) != first

    def test_one_that_dies_at_once_is_not_tried_again_at_once(self, make: Make, lock_path: Path) -> None:
        spare = make(DIES)
        pid = start(spare)
        until(lambda: not is_alive(pid), "its end")
        with spare.lock() as lock:
            assert lock is not None
            spare.keep_one(lock)
        assert spare.pid is None
        assert is_free(lock_path)

    def test_one_that_died_between_the_look_and_the_job_costs_the_job_nothing(self, make: Make, tmp_path: Path) -> None:
        spare = make(DIES)
        pid = start(spare)
        with spare.lock() as lock:
            until(lambda: not is_alive(pid), "its end")
            assert lock is not None
            assert spare.take(tmp_path, RUN) is None

    def test_it_dies_with_the_thread_that_started_it(self, lock_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The real program: its death signal follows the slot's thread, and its lock is free then."""
        monkeypatch.setattr("worker.jobs.warm_trainer.IDLE_SECONDS", 0.0)
        spare = Spare(TRAINER, lock_path, threads=1)
        seen: list[int] = []
        goes_on = threading.Event()

        def slot() -> None:
            seen.append(start(spare))
            until(lambda: b"torch" in Path(f"/proc/{seen[0]}/maps").read_bytes(), "the imports")
            goes_on.wait(30)

        thread = threading.Thread(target=slot)
        thread.start()
        goes_on.set()
        thread.join()
        until(lambda: not is_alive(seen[0]), "its end")
        spare.close()
        assert is_free(lock_path)


class TestLock:
    def test_a_waiting_one_holds_the_slots_lock(self, make: Make, lock_path: Path) -> None:
        spare = make(WAITS)
        start(spare)
        assert not is_free(lock_path)
        spare.close()
        assert is_free(lock_path)

    def test_its_own_slot_passes(self, make: Make) -> None:
        spare = make(WAITS)
        start(spare)
        for _ in range(2):
            with spare.lock() as lock:
                assert lock is not None

    def test_a_trainer_that_will_not_die_keeps_its_slot_though_it_was_a_spare(
        self, make: Make, lock_path: Path, tmp_path: Path
    ) -> None:
        spare = make(WAITS)
        start(spare)
        with spare.lock():
            child = spare.take(tmp_path, RUN)
        assert child is not None
        assert not is_free(lock_path)
        with spare.lock() as lock:
            assert lock is None
        child.close()
        with spare.lock() as lock:
            assert lock is not None


@pytest.mark.timeout(240)
def test_the_real_trainer_waits_and_trains(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real supervisor: the job is done by the process that waited, in its own directory, in its own log."""
    monkeypatch.setattr("worker.jobs.warm_trainer.IDLE_SECONDS", 0.0)
    settings = bench.resources.settings
    settings.spare_trainer = True
    settings.lease_ttl_seconds, settings.stall_seconds, settings.stop_grace_seconds = 120.0, 100.0, 30.0
    settings.self_fence_seconds, settings.self_fence_kill_seconds = 100.0, 110.0
    supervisor = Supervisor(bench.resources, OWNER, bench.trainer_lock, TRAINER)
    assert not supervisor.take_one()
    pid = supervisor.spare.pid
    assert pid is not None

    job = bench.created(body={"hyperparameters": {"n_epochs": 1, "batch_size": 4}, "lora": {"r": 4}})
    Validator(bench.resources, "cpu0@test#1").take_one()
    assert supervisor.take_one()

    assert bench.job(job).state == "succeeded", bench.messages(job)
    assert supervisor.spare.pid is None
    assert not is_alive(pid)
    assert not [path for path in bench.trainer_lock.with_suffix(".spare").rglob("*") if path.is_file()]
    assert not supervisor.take_one()
    assert supervisor.spare.pid not in (None, pid)
    supervisor.spare.close()
