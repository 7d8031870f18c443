"""The program that grades: its limits, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update

import worker.evaluations.evaluator
from app.db.engine import transaction
from app.db.tables import Evaluation, Job
from app.domain.jobs.states import ExitCode
from app.services.jobs import evaluations as service
from app.system.host import PARENT_PID_VARIABLE
from tests.deadline import until
from tests.processes import is_alive
from tests.worker.evaluations.conftest import GENERATE, Ask, Evaluate, evaluator, lines, read
from tests.worker.worker_harness import WorkerHarness
from worker.evaluations.evaluator import GRADE_COMMAND

# A program that hangs, with a child process, and notes both ids.
HANG = """
import os, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path("written").write_text(f"{os.getpid()} {child.pid}")
pathlib.Path("written").rename("pids")
time.sleep(600)
"""
SIMILAR = {"type": "text_similarity", "name": "similar", "input": "{{ item.a }}", "reference": "{{ item.b }}"}


def cancel(harness: WorkerHarness, _job: Job, evaluation: Evaluation) -> None:
    with transaction(harness.sessions) as session:
        service.cancel(session, session.get_one(Evaluation, evaluation.id))


def drain(harness: WorkerHarness, job: Job, evaluation: Evaluation) -> None:
    harness.resources.stop.set()


def lose_lease(harness: WorkerHarness, job: Job, evaluation: Evaluation) -> None:
    with transaction(harness.sessions) as session:
        session.execute(update(Evaluation).values(lease_owner="gpu0@other#1", attempt=Evaluation.attempt + 1))


@pytest.mark.parametrize(
    ("end", "state"),
    [(cancel, "cancelled"), (drain, "queued"), (lose_lease, "running")],
    ids=["cancel", "shutdown", "lost lease"],
)
def test_a_cancel_a_shutdown_and_a_lost_lease_end_a_grading_at_once(
    harness: WorkerHarness,
    ask: Ask,
    trained: Job,
    tmp_path: Path,
    end: Callable[[WorkerHarness, Job, Evaluation], None],
    state: str,
) -> None:
    evaluation = ask()
    thread = threading.Thread(target=evaluator(harness, tmp_path, grade=(sys.executable, "-c", HANG)).run_next)
    thread.start()
    work = harness.resources.settings.work_dir
    until(lambda: list(work.rglob("pids")), "the grading")
    pids = [int(pid) for path in work.rglob("pids") for pid in path.read_text().split()]
    end(harness, trained, evaluation)
    thread.join(20)
    assert not thread.is_alive()
    until(lambda: not any(map(is_alive, pids)), "the end of the program and of its child")
    done = read(harness, evaluation)
    assert (done.state, done.results_file_id, done.crash_streak) == (state, None, 0)
    assert state != "cancelled" or (harness.job(trained).evaluation or {})["status"] == state
    assert list(work.rglob("prompts.jsonl")) == []


def test_the_time_of_a_grading_is_limited_by_its_rows(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.evaluations.evaluator, "GRADING_SECONDS", 0.1)
    monkeypatch.setattr(worker.evaluations.evaluator, "GRADING_SECONDS_PER_ROW", 0.01)
    done = evaluate(grade=(sys.executable, "-c", HANG))
    assert (done.state, done.error_code, done.attempt) == ("failed", "server_error", 1)
    assert "limit of time" in str(done.error_message)


def test_the_memory_of_a_grading_is_limited(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.evaluations.evaluator, "GRADING_MEMORY_BYTES", 96 << 20)
    done = evaluate(lines(3, unused=[{}] * 300_000))  # 25 MB each in memory
    assert (done.state, done.error_code, done.attempt) == ("failed", "out_of_memory", 1)
    assert "100,663,296 bytes" in str(done.error_message)


def test_the_kernel_limits_programs_that_limit_nothing_themselves(evaluate: Evaluate) -> None:
    greedy = f"import sys\ntry: bytearray(3 << 30)\nexcept MemoryError: sys.exit({ExitCode.OUT_OF_MEMORY})"
    assert evaluate(grade=(sys.executable, "-c", greedy)).error_code == "out_of_memory"


def test_the_longest_texts_are_graded(evaluate: Evaluate) -> None:
    row = lines(1, a="a " * 40_000, b="b " * 40_000)
    done = evaluate(row, graders=[SIMILAR | {"evaluation_metric": "rouge_l"}])
    assert (done.state, done.error_message) == ("succeeded", None)


def test_an_answer_that_is_too_long_costs_no_other_row_its_score(evaluate: Evaluate) -> None:
    printed = "print(json.dumps({'row'"
    long = GENERATE.replace(printed, f"text += 'x' * 100_000 * (p['row'] == 1)\n            {printed}")
    done = evaluate(lines(3), long)
    assert done.state == "succeeded"
    assert done.summary is not None
    (exact,) = done.summary["graders"]
    assert [(exact[model]["rows"], exact[model]["failed_rows"]) for model in ("base", "adapter")] == [(2, 1), (2, 1)]


def test_a_grading_ends_with_its_parent(tmp_path: Path) -> None:
    environment = os.environ | {PARENT_PID_VARIABLE: "1"}  # another process than the one that starts it
    program = subprocess.run([*GRADE_COMMAND, str(tmp_path)], env=environment, check=False)
    assert program.returncode == ExitCode.INTERNAL
