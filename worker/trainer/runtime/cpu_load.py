"""Whether other programs use the processors that this one needs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

TOLERATED = 0.25  # cores that others may take of those our threads run on


@dataclass(frozen=True)
class Sample:
    """Processor time used since some moment: on the cores this process may use, and by the process itself."""

    at_seconds: float
    busy_seconds: float
    own_seconds: float


def take_sample() -> Sample:
    allowed = os.sched_getaffinity(0)
    times = [each for number, each in enumerate(psutil.cpu_times(percpu=True)) if number in allowed]
    busy_seconds = sum(each.user + each.nice + each.system + each.irq + each.softirq for each in times)
    return Sample(time.monotonic(), busy_seconds, time.process_time())


def is_crowded(before: Sample, after: Sample, cores: int, threads: int) -> bool:
    """Whether others used so much of `cores` between the samples that `threads` had too few for themselves."""
    passed_seconds = max(after.at_seconds - before.at_seconds, 1e-9)
    others_seconds = (after.busy_seconds - before.busy_seconds) - (after.own_seconds - before.own_seconds)
    return others_seconds / passed_seconds > cores - threads + TOLERATED
