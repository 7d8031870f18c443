"""The trainer's process: its control input, its parent, its working time."""

from __future__ import annotations

import os
import sys
import time
from typing import IO

from app.domain.jobs.states import ExitCode
from app.system import parent_death
from worker.trainer import PROCESS_STARTED_AT

_work_started_at: float | None = None  # by time.monotonic(); only in a warm trainer


def control_lines() -> IO[bytes]:
    """Return standard input, unbuffered, because Python cannot exit while a thread reads a buffered one.

    A closed standard input counts as empty.
    """
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # gets the lowest free descriptor, which is 0
    return os.fdopen(os.dup(0), "rb", buffering=0)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: an orphaned trainer would occupy the GPU.

    The signal works from this call on, so the process exits here if the parent is dead already.
    """
    parent_pid = os.environ.get(parent_death.PARENT_PID_VARIABLE)
    if parent_pid is None:
        return
    if not parent_death.die_with_parent(int(parent_pid)):
        print(f"the parent process {parent_pid} has ended", file=sys.stderr)
        sys.exit(ExitCode.INTERNAL)


def start_working_time() -> None:
    """Start to count `working_seconds`: the time in which a warm trainer waits does not belong to the job."""
    global _work_started_at
    _work_started_at = time.monotonic()


def working_seconds() -> float:
    """Return the seconds since the process, or the work of a warm trainer, started."""
    return time.monotonic() - (_work_started_at or PROCESS_STARTED_AT)
