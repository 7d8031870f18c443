"""Exit code and last record -> the reason an attempt ended. A pure table: nothing here touches a process or a row."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.domain.jobs.events import Done, Failed, Stopped
from app.domain.jobs.states import CRASHES, FINAL_STATE, ExitCode, JobState, Reason
from worker.jobs.sanitize import clean_text

# Reasons a trainer may give for its end. It is not believed when it claims a success, a pause or a crash loop.
CREDIBLE = frozenset(
    reason for reason, state in FINAL_STATE.items() if state == JobState.FAILED and reason != Reason.WORKER_CRASH_LOOP
) | {Reason.STORAGE_FULL}


# A storage that is away is asked again a minute later, not five seconds: each try leaves two events.
STORAGE_PATIENCE = 12
KILLED = (-signal.SIGKILL, ExitCode.KILLED)
PATIENT_KILLS = 2  # a kill may be a neighbour's fault, and each time the trainer plans with 30 % less


@dataclass(frozen=True)
class Ending:
    """How a trainer's process ended, as far as its parent can tell."""

    exit_code: int | None  # negative: a signal; None: it was killed and still did not go
    final: Done | Stopped | Failed | None = None
    stalled: bool = False
    drain_asked: bool = False
    pause_asked: bool = False
    yield_asked: bool = False
    oom_killed: bool = False  # the kernel's counter of OOM kills has risen meanwhile
    memory_kills: int = 0  # of the job's earlier attempts


@dataclass(frozen=True)
class Outcome:
    reason: Reason
    message: str
    param: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)  # of the event

    @property
    def level(self) -> str:
        return "warn" if self.reason in CRASHES else "info"


def judge(ending: Ending) -> Outcome:
    if isinstance(ending.final, Done):
        return Outcome(Reason.DONE, "")  # verified and complete; a crash on the way out changes nothing
    if ending.stalled:
        return Outcome(Reason.STALLED, "The trainer said nothing for too long and was stopped")
    if isinstance(ending.final, Failed) and ending.final.reason in CREDIBLE:
        param = clean_text(ending.final.param) if ending.final.param is not None else None
        return Outcome(ending.final.reason, clean_text(ending.final.message), param)
    if ending.exit_code == ExitCode.PAUSED and ending.pause_asked:
        return Outcome(Reason.PAUSED, f"The job was paused{_at_step(ending)}")
    if ending.exit_code == ExitCode.DRAINED and ending.yield_asked and not ending.drain_asked:
        return Outcome(Reason.GAVE_WAY, f"The job gave way to an urgent one{_at_step(ending)} and is queued again")
    if ending.exit_code == ExitCode.DRAINED or _was_drained(ending):
        return Outcome(Reason.DRAINED, f"The worker stopped the attempt{_at_step(ending)}; the job is queued again")
    if ending.exit_code == ExitCode.OUT_OF_MEMORY:
        return Outcome(Reason.OUT_OF_MEMORY, "The trainer ran out of memory; lower context_length or lora.r")
    if ending.exit_code == ExitCode.BAD_SPEC:
        return Outcome(Reason.INVALID_SPEC, "The trainer refused what it was given, without a word about why")
    return _crash(ending)


def _was_drained(ending: Ending) -> bool:
    """Asked to drain, it died of our signal: too early for its handler, or too late for our patience."""
    return ending.drain_asked and ending.exit_code in (-signal.SIGTERM, -signal.SIGKILL, None)


def _crash(ending: Ending) -> Outcome:
    if ending.oom_killed and ending.exit_code in KILLED:
        text = "The kernel killed the trainer because the machine ran out of memory"
        if ending.memory_kills >= PATIENT_KILLS:
            text += f" {ending.memory_kills + 1} times, although it took less each time"
            return Outcome(
                Reason.OUT_OF_MEMORY, f"{text}; lower context_length or lora.r", "hyperparameters.context_length"
            )
        return Outcome(Reason.KILLED_FOR_MEMORY, f"{text}; the next attempt takes less")
    if isinstance(ending.final, Failed):
        return Outcome(Reason.TRAINER_CRASHED, clean_text(ending.final.message))
    return Outcome(Reason.TRAINER_CRASHED, f"The trainer {_how(ending.exit_code)}")


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "did not go when it was killed"
    if exit_code == 0:
        return "ended without a result"
    if exit_code == ExitCode.KILLED:
        exit_code = -signal.SIGKILL
    if exit_code > 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


def _at_step(ending: Ending) -> str:
    return f" at step {ending.final.step}" if isinstance(ending.final, Stopped) else ""
