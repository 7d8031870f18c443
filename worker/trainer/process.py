"""What a trainer's process is to the one that started it: it hears control lines, and it never outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import IO

import psutil

from app.domain.states import ExitCode

PARENT = "TUNERY_PARENT_PID"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Work:
    """When the process's work began: with the process, but for a spare, which may have waited for days."""

    began_at: float = field(default_factory=lambda: psutil.Process().create_time())

    def begin(self) -> None:
        self.began_at = time.time()

    @property
    def seconds(self) -> float:
        return time.time() - self.began_at


WORK = Work()


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
