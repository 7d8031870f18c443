"""A child process that ends with its parent, however the parent ends (prctl(2), PR_SET_PDEATHSIG; Linux only)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT_PID_VARIABLE = "TUNERY_PARENT_PID"  # of a program of the trainer that ends with its parent


def die_with_parent(parent_pid: int) -> bool:
    """Have the kernel kill this process when its parent ends. False if it has ended already: then exit.

    The signal is sent when the thread that started this process ends.
    """
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent_pid
