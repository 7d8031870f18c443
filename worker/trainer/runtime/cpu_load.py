"""The CPU load of other programs on the cores of this process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class CpuSample:
    """CPU time since a fixed moment: on the cores this process may use, and of the process itself."""

    at_seconds: float
    busy_seconds: float
    own_seconds: float


def take_sample() -> CpuSample:
    allowed = os.sched_getaffinity(0)
    times = [each for number, each in enumerate(psutil.cpu_times(percpu=True)) if number in allowed]
    busy_seconds = sum(each.user + each.nice + each.system + each.irq + each.softirq for each in times)
    return CpuSample(time.monotonic(), busy_seconds, time.process_time())


def others_share(before: CpuSample, after: CpuSample, cores: int) -> float:
    """Return the share of `cores` (0 to 1) that other programs used between the samples."""
    elapsed_seconds = max(after.at_seconds - before.at_seconds, 1e-9)
    others_seconds = (after.busy_seconds - before.busy_seconds) - (after.own_seconds - before.own_seconds)
    return min(1.0, max(0.0, others_seconds / elapsed_seconds / cores))
