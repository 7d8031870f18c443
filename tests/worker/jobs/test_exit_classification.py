"""Exit code and final record -> reason: the complete table."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from app.domain.jobs.events import Done, Failed, Stopped
from app.domain.jobs.states import JobState, Reason
from tests.sentences import Reviewed
from worker.jobs.exit_classification import TrainerExit, classify_exit

DONE = Done(run_id="r", step=4, trained_tokens=400, directory="d")
STOPPED = Stopped(run_id="r", reason=Reason.PAUSED, step=7)


def failed(reason: Reason) -> Failed:
    return Failed(run_id="r", reason=reason, message="because", param="lora.r")


@pytest.mark.parametrize(
    ("exit_fields", "reason"),
    [
        ({"exit_code": 0, "final": DONE}, Reason.DONE),
        ({"exit_code": -signal.SIGSEGV, "final": DONE}, Reason.DONE),
        ({"exit_code": 0, "final": DONE, "stalled": True}, Reason.DONE),
        ({"exit_code": 0}, Reason.TRAINER_CRASHED),
        ({"exit_code": 64}, Reason.INVALID_SPEC),
        ({"exit_code": 70}, Reason.TRAINER_CRASHED),
        ({"exit_code": 70, "final": failed(Reason.TRAINER_CRASHED)}, Reason.TRAINER_CRASHED),
        ({"exit_code": 69}, Reason.DEVICE_LOST),
        ({"exit_code": 69, "final": failed(Reason.DEVICE_LOST)}, Reason.DEVICE_LOST),
        ({"exit_code": 70, "final": failed(Reason.STORAGE_FULL)}, Reason.STORAGE_FULL),
        ({"exit_code": 64, "final": failed(Reason.NON_FINITE_LOSS)}, Reason.NON_FINITE_LOSS),
        ({"exit_code": 71}, Reason.OUT_OF_MEMORY),
        ({"exit_code": 75}, Reason.DRAINED),
        ({"exit_code": 76, "pause_requested": True, "final": STOPPED}, Reason.PAUSED),
        ({"exit_code": 76, "final": STOPPED}, Reason.TRAINER_CRASHED),
        ({"exit_code": 77}, Reason.TRAINER_CRASHED),
        ({"exit_code": -signal.SIGTERM, "drain_requested": True}, Reason.DRAINED),
        ({"exit_code": -signal.SIGKILL, "drain_requested": True}, Reason.DRAINED),
        ({"exit_code": None, "drain_requested": True}, Reason.DRAINED),
        ({"exit_code": -signal.SIGTERM}, Reason.TRAINER_CRASHED),
        ({"exit_code": -signal.SIGKILL}, Reason.TRAINER_CRASHED),
        ({"exit_code": None}, Reason.TRAINER_CRASHED),
        ({"exit_code": -signal.SIGKILL, "stalled": True}, Reason.STALLED),
        ({"exit_code": -signal.SIGKILL, "oom_killed": True}, Reason.KILLED_FOR_MEMORY),
        ({"exit_code": -signal.SIGKILL, "oom_killed": True, "memory_kills": 1}, Reason.KILLED_FOR_MEMORY),
        ({"exit_code": -signal.SIGKILL, "oom_killed": True, "memory_kills": 2}, Reason.OUT_OF_MEMORY),
        ({"exit_code": 137}, Reason.TRAINER_CRASHED),
        ({"exit_code": 137, "oom_killed": True}, Reason.KILLED_FOR_MEMORY),
        ({"exit_code": 137, "oom_killed": True, "memory_kills": 2}, Reason.OUT_OF_MEMORY),
        ({"exit_code": 1, "oom_killed": True, "memory_kills": 2}, Reason.TRAINER_CRASHED),
        ({"exit_code": -200}, Reason.TRAINER_CRASHED),
    ],
)
def test_classify_exit_returns_the_reason(exit_fields: dict[str, Any], reason: Reason) -> None:
    assert classify_exit(TrainerExit(**exit_fields)).reason == reason


@pytest.mark.parametrize("reason", list(Reason))
def test_a_trainers_reason_counts_if_it_fails_the_job_or_is_a_full_disk_or_a_lost_gpu(reason: Reason) -> None:
    outcome = classify_exit(TrainerExit(exit_code=70, final=failed(reason)))
    fails = reason.final_state == JobState.FAILED and reason != Reason.WORKER_CRASH_LOOP
    if fails or reason in (Reason.STORAGE_FULL, Reason.DEVICE_LOST):
        assert (outcome.reason, outcome.message, outcome.param) == (reason, "because", "lora.r")
    else:
        assert outcome.reason == Reason.TRAINER_CRASHED


def test_characters_that_postgresql_refuses_are_replaced() -> None:
    final = Failed(run_id="r", reason=Reason.NON_FINITE_LOSS, message="a\x00b" + "x" * 10_000, param="p\x00")
    outcome = classify_exit(TrainerExit(exit_code=64, final=final))
    assert outcome.message.startswith("a\ufffdbx")
    assert len(outcome.message) == 8_000
    assert outcome.param == "p\ufffd"


@pytest.mark.parametrize(
    ("exit_code", "text"),
    [
        (-signal.SIGSEGV, "The trainer was ended by SIGSEGV"),
        (-200, "The trainer was ended by signal 200"),
        (3, "The trainer ended with exit code 3"),
        (0, "The trainer ended without a result"),
        (None, "The trainer did not exit when it was killed"),
    ],
)
def test_the_message_of_a_crash_names_the_exit_code_or_signal(exit_code: int | None, text: str) -> None:
    assert classify_exit(TrainerExit(exit_code=exit_code)).message == text


@pytest.mark.parametrize(("exit_code", "names_cuda"), [(1, True), (70, False)])
def test_an_error_of_cuda_that_bitsandbytes_ends_the_process_with_is_named(exit_code: int, names_cuda: bool) -> None:
    tail = "one\nError an illegal memory access was encountered at line 449 in file /src/csrc/ops.cu\nlast"
    outcome = classify_exit(TrainerExit(exit_code=exit_code, log_tail=tail))
    assert outcome.reason == Reason.TRAINER_CRASHED
    assert ("illegal memory access" in outcome.message) == names_cuda


def test_a_training_that_its_worker_stopped_without_a_database_says_so_and_what_follows(reviewed: Reviewed) -> None:
    ended = TrainerExit(exit_code=75, final=STOPPED, drain_requested=True, self_fenced=True)
    reviewed(classify_exit(ended).message)
