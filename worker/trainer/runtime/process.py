"""What a trainer's process is to the one that started it: it hears control lines, never outlives it, has a clock."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import IO

import psutil

from app.domain.jobs.states import ExitCode

PARENT = "TUNERY_PARENT_PID"
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_began_at: float | None = None  # as time.time() has it; of a spare alone


def control_lines() -> IO[bytes]:
    """Standard input, unbuffered: Python can't exit while a thread waits in a buffered one. Closed is empty."""
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number, which is 0
    return os.fdopen(os.dup(0), "rb", buffering=0)


def die_with_parent() -> None:
    """Never outlive the worker that started us: an orphan would hold the GPU.

    The kernel sends the signal from the moment of the call on; a parent that died before that is looked for afterwards.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        print(f"the parent {parent} is gone", file=sys.stderr)
        sys.exit(ExitCode.INTERNAL)


def start_working_time() -> None:
    """A spare's wait is over: what it waited is no part of the job."""
    global _began_at
    _began_at = time.time()


def working_seconds() -> float:
    """Since this process began, or has had its work."""
    return time.time() - (_began_at or psutil.Process().create_time())
