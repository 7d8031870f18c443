"""Classify how a trainer ended: exit code and final record -> the reason the attempt ended.

Pure functions: nothing here touches a process or a row.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.domain.jobs.events import Done, Failed, Stopped
from app.domain.jobs.states import CRASHES, ExitCode, JobState, Reason
from worker.jobs.sanitize import clean_text

# Reasons that a trainer's own record may give. A success, a pause or a crash loop needs more evidence than its record.
CREDIBLE_REASONS = frozenset(
    reason for reason in Reason if reason.final_state == JobState.FAILED and reason != Reason.WORKER_CRASH_LOOP
) | {Reason.STORAGE_FULL, Reason.DEVICE_LOST}

# Unavailable storage is retried after a minute instead of five seconds, because each attempt leaves two events.
DELAY_FACTORS = {Reason.PAUSED: 0, Reason.PREEMPTED: 0, Reason.SLOT_TOO_SMALL: 0, Reason.STORAGE_UNAVAILABLE: 12}
KILLED_EXIT_CODES = (-signal.SIGKILL, ExitCode.KILLED)
# What bitsandbytes prints for an error of CUDA in its own code, before it ends the process with exit code 1.
CUDA_ERROR = re.compile(r"Error (.{1,200}) at line \d+ in file \S*csrc/")
# An OOM kill may be caused by another process, and after each one the trainer plans with 30 % less memory.
MAX_MEMORY_KILL_RETRIES = 2


@dataclass(frozen=True)
class TrainerExit:
    """How a trainer's process ended, as far as its parent can know."""

    exit_code: int | None  # negative: a signal; None: it was killed and still exists
    final: Done | Stopped | Failed | None = None
    stalled: bool = False
    drain_requested: bool = False
    self_fenced: bool = False  # the drain was requested because no renewal of the lease was confirmed
    pause_requested: bool = False
    preempt_requested: bool = False
    oom_killed: bool = False  # the kernel's counter of OOM kills rose while the trainer ran
    memory_kills: int = 0  # OOM kills of the job's earlier attempts
    log_tail: str = ""  # the last lines of its standard error


@dataclass(frozen=True)
class AttemptOutcome:
    """Why an attempt ended, with the message and data of its event."""

    reason: Reason
    message: str
    param: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        return "warn" if self.reason in CRASHES | {Reason.DEVICE_LOST} else "info"

    def delay_factor(self, is_stopping: bool) -> int:
        """How long the job waits before its next attempt, as a multiple of the delay after a crash."""
        if self.reason == Reason.DRAINED:
            return 0 if is_stopping else 1
        return DELAY_FACTORS.get(self.reason, 1)


def classify_exit(ended: TrainerExit) -> AttemptOutcome:
    if isinstance(ended.final, Done):
        return AttemptOutcome(Reason.DONE, "")  # the result is verified and complete: a later crash changes nothing
    if ended.stalled:
        return AttemptOutcome(Reason.STALLED, "The trainer sent no records for too long and was stopped")
    if isinstance(ended.final, Failed) and ended.final.reason in CREDIBLE_REASONS:
        param = clean_text(ended.final.param) if ended.final.param is not None else None
        return AttemptOutcome(ended.final.reason, clean_text(ended.final.message), param)
    at_step = f" at step {ended.final.step}" if isinstance(ended.final, Stopped) else ""
    if ended.exit_code == ExitCode.PAUSED and ended.pause_requested:
        return AttemptOutcome(Reason.PAUSED, f"The job was paused{at_step}")
    if ended.exit_code == ExitCode.DRAINED and ended.preempt_requested and not ended.drain_requested:
        text = f"The job was preempted{at_step} by an urgent job; it is queued again and will resume automatically"
        return AttemptOutcome(Reason.PREEMPTED, text)
    if ended.exit_code == ExitCode.DRAINED or _was_killed_during_drain(ended):
        why = "The worker shut down"
        if ended.self_fenced:
            why = "The worker had no answer from PostgreSQL for too long to keep the job, and stopped the training"
        return AttemptOutcome(Reason.DRAINED, f"{why}{at_step}; the job is queued again and will resume automatically")
    if ended.exit_code == ExitCode.OUT_OF_MEMORY:
        return AttemptOutcome(Reason.OUT_OF_MEMORY, "The trainer ran out of memory; lower context_length or lora.r")
    if ended.exit_code == ExitCode.BAD_SPEC:
        return AttemptOutcome(Reason.INVALID_SPEC, "The trainer rejected its spec file and gave no reason")
    if ended.exit_code == ExitCode.DEVICE_LOST:
        text = "A GPU of the job failed or disappeared; the job is tried again from its last snapshot"
        return AttemptOutcome(Reason.DEVICE_LOST, text)
    return _classify_crash(ended)


def _was_killed_during_drain(ended: TrainerExit) -> bool:
    """True if our signal killed it during a drain, before its handler was installed or after the grace period."""
    return ended.drain_requested and ended.exit_code in (-signal.SIGTERM, -signal.SIGKILL, None)


def _classify_crash(ended: TrainerExit) -> AttemptOutcome:
    if ended.oom_killed and ended.exit_code in KILLED_EXIT_CODES:
        text = "The kernel killed the trainer because the machine ran out of memory"
        if ended.memory_kills >= MAX_MEMORY_KILL_RETRIES:
            text += f" {ended.memory_kills + 1} times, although each attempt used less; lower context_length or lora.r"
            return AttemptOutcome(Reason.OUT_OF_MEMORY, text, "hyperparameters.context_length")
        return AttemptOutcome(Reason.KILLED_FOR_MEMORY, f"{text}; the next attempt will use less memory")
    if isinstance(ended.final, Failed):
        return AttemptOutcome(Reason.TRAINER_CRASHED, clean_text(ended.final.message))
    text = f"The trainer {_describe_exit_code(ended.exit_code)}"
    if ended.exit_code == 1 and (error := CUDA_ERROR.search(ended.log_tail)):
        text += f" after an error of CUDA in bitsandbytes: {clean_text(error[1])}"
    return AttemptOutcome(Reason.TRAINER_CRASHED, text)


def _describe_exit_code(exit_code: int | None) -> str:
    if exit_code is None:
        return "did not exit when it was killed"
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
