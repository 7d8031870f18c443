"""The warm trainer: it gets the next job, holds the slot's lock, and dies with its slot's thread."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deadline import until
from tests.processes import is_alive
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.jobs.supervisor import JobSupervisor
from worker.jobs.trainer_process import TRAINER_COMMAND, WarmTrainer
from worker.node.slot import try_lock
from worker.validation import Validator

RUN = "ftjob-1"
WAITS = """
import json, os, sys, time
line = sys.stdin.readline()
print(json.dumps({"kind": "message", "run_id": "ftjob-1", "message": line.strip()}), flush=True)
time.sleep(60)
"""
DIES = "import sys; sys.exit('no torch here')"

Make = Callable[[str], WarmTrainer]


@pytest.fixture
def lock_path(tmp_path: Path) -> Path:
    return tmp_path / "gpu0.trainer.lock"


@pytest.fixture
def make(lock_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A slot's warm trainer, whose command is a Python program, started at once."""
    monkeypatch.setattr("worker.jobs.trainer_process.IDLE_SECONDS", 0.0)
    started: list[WarmTrainer] = []

    def make(program: str) -> WarmTrainer:
        started.append(WarmTrainer((sys.executable, "-c", program), lock_path, threads=1))
        return started[-1]

    yield make
    for warm in started:
        warm.close()


def start_if_allowed(warm: WarmTrainer) -> int | None:
    with warm.lock() as lock:
        assert lock is not None
        warm.ensure(lock)
    return warm.pid


def start(warm: WarmTrainer) -> int:
    pid = start_if_allowed(warm)
    assert pid is not None
    return pid


def is_free(lock_path: Path) -> bool:
    with try_lock(lock_path) as lock:
        return lock is not None


class TestTaking:
    def test_the_waiting_process_holds_the_slots_lock_and_goes_to_the_next_job_until_that_ends(
        self, make: Make, lock_path: Path, tmp_path: Path
    ) -> None:
        warm = make(WAITS)
        pid = start(warm)
        assert (start(warm), is_free(lock_path)) == (pid, False)
        with warm.lock():
            child = warm.take(tmp_path, RUN)
        assert child is not None
        assert (child.pid, warm.pid) == (pid, None)
        assert str(tmp_path) in next(child.records()).message
        with warm.lock() as lock:  # a trainer that cannot be killed keeps its slot
            assert (lock, is_free(lock_path)) == (None, False)
        child.close()
        with warm.lock() as lock:
            assert lock is not None

    @pytest.mark.parametrize("is_enabled", [False, True], ids=["disabled", "directly after the start of the worker"])
    def test_no_trainer_is_started_that_may_not_wait(self, lock_path: Path, is_enabled: bool) -> None:
        warm = WarmTrainer((sys.executable, "-c", WAITS), lock_path, threads=1, is_enabled=is_enabled)
        assert start_if_allowed(warm) is None

    def test_no_trainer_is_started_directly_after_a_job(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warm = make(WAITS)
        monkeypatch.setattr("worker.jobs.trainer_process.IDLE_SECONDS", 60.0)
        with warm.lock():
            warm.take(tmp_path, RUN)
        assert start_if_allowed(warm) is None

    def test_a_failed_start_leaves_the_lock_free(self, make: Make, lock_path: Path) -> None:
        warm = make(WAITS)
        lock_path.with_suffix(".spare").write_text("in the way")
        assert start_if_allowed(warm) is None
        assert is_free(lock_path)


class TestDeath:
    def test_a_waiting_trainer_that_died_is_replaced(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.jobs.trainer_process.RESTART_DELAY_SECONDS", 0.0)
        warm = make(WAITS)
        first = start(warm)
        os.kill(first, signal.SIGKILL)
        until(lambda: not is_alive(first), "its exit")
        assert start(warm) != first

    def test_a_trainer_that_dies_at_once_is_not_restarted_at_once(self, make: Make, lock_path: Path) -> None:
        warm = make(DIES)
        pid = start(warm)
        until(lambda: not is_alive(pid), "its exit")
        assert start_if_allowed(warm) is None
        assert is_free(lock_path)

    def test_take_returns_none_if_the_waiting_trainer_has_died(self, make: Make, tmp_path: Path) -> None:
        warm = make(DIES)
        pid = start(warm)
        with warm.lock() as lock:
            until(lambda: not is_alive(pid), "its exit")
            assert lock is not None
            assert warm.take(tmp_path, RUN) is None

    def test_a_waiting_trainer_dies_with_the_thread_that_started_it(
        self, lock_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The real program: its death signal follows the slot's thread, and its lock is released."""
        monkeypatch.setattr("worker.jobs.trainer_process.IDLE_SECONDS", 0.0)
        warm = WarmTrainer(TRAINER_COMMAND, lock_path, threads=1)
        pids: list[int] = []
        may_exit = threading.Event()

        def slot() -> None:
            pids.append(start(warm))
            until(lambda: b"torch" in Path(f"/proc/{pids[0]}/maps").read_bytes(), "the imports")
            may_exit.wait(30)

        thread = threading.Thread(target=slot)
        thread.start()
        may_exit.set()
        thread.join()
        until(lambda: not is_alive(pids[0]), "its exit")
        warm.close()
        assert is_free(lock_path)


@pytest.mark.extended("another start of the real program")
@pytest.mark.timeout(240)
def test_the_real_warm_trainer_trains_the_next_job(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real supervisor: the waiting process trains the job, in the job's directory, with the job's log."""
    monkeypatch.setattr("worker.jobs.trainer_process.IDLE_SECONDS", 0.0)
    settings = harness.resources.settings
    settings.spare_trainer = True
    settings.lease_ttl_seconds, settings.stall_seconds, settings.stop_grace_seconds = 120.0, 100.0, 30.0
    settings.self_fence_seconds, settings.self_fence_kill_seconds = 100.0, 110.0
    supervisor = JobSupervisor(harness.resources, OWNER, harness.trainer_lock, TRAINER_COMMAND)
    assert not supervisor.run_next()
    pid = supervisor.warm_trainer.pid
    assert pid is not None

    job = harness.create_job(body={"hyperparameters": {"n_epochs": 1, "batch_size": 4}, "lora": {"r": 4}})
    Validator(harness.resources, "cpu0@test#1").run_next()
    assert supervisor.run_next()

    assert harness.job(job).state == "succeeded", harness.messages(job)
    assert supervisor.warm_trainer.pid is None
    assert not is_alive(pid)
    assert not [path for path in harness.trainer_lock.with_suffix(".spare").rglob("*") if path.is_file()]
    assert not supervisor.run_next()
    assert supervisor.warm_trainer.pid not in (None, pid)
    supervisor.warm_trainer.close()
