"""A clock for durations that includes the time during which the machine is suspended."""

from __future__ import annotations

import time


def boottime_seconds() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
