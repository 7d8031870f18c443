"""Whether OpenMP's threads spin or sleep while they wait for each other: they spin while nobody else needs their cores.

A step waits some ten thousand times. Waking a thread that sleeps takes tens of microseconds, on a virtual machine up to
a millisecond: a fifth of a step. A thread that spins instead takes the core that the awaited one may need: on two
busy cores steps took 7 to 22 times as long.

libgomp decides at its start, but for one case: it doesn't spin while it manages more threads than there are processors
(`do_spin` in its wait.h). So the switch is a team of idle threads, held while others are at work.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

MAPS = Path("/proc/self/maps")
SPIN_COUNT = "300000"  # some milliseconds, libgomp's own default
LOOK_SECONDS = 0.5
TOLERATED = 0.25  # cores that others may take of those our threads run on


@dataclass(frozen=True)
class Sample:
    """Processor time used since some moment: on the cores this process may use, and by the process itself."""

    at_seconds: float
    busy_seconds: float
    own_seconds: float


def allow_spinning() -> None:
    """Before torch is loaded: libgomp reads it once. An operator's own settings stay."""
    if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE":
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def is_crowded(before: Sample, after: Sample, cores: int, threads: int) -> bool:
    """Whether others used so much of `cores` between the samples that `threads` had too few for themselves."""
    passed_seconds = max(after.at_seconds - before.at_seconds, 1e-9)
    others_seconds = (after.busy_seconds - before.busy_seconds) - (after.own_seconds - before.own_seconds)
    return others_seconds / passed_seconds > cores - threads + TOLERATED


def take_sample() -> Sample:
    allowed = os.sched_getaffinity(0)
    times = [each for number, each in enumerate(psutil.cpu_times(percpu=True)) if number in allowed]
    busy_seconds = sum(each.user + each.nice + each.system + each.irq + each.softirq for each in times)
    return Sample(time.monotonic(), busy_seconds, time.process_time())


class Crowd:
    """Idle OpenMP threads, enough for libgomp to see more than there are processors; none where libgomp isn't used."""

    def __init__(self, threads: int) -> None:
        self._size = max(2, len(os.sched_getaffinity(0)) - threads + 2)
        self._library = _libgomp()
        self._dismissed: threading.Event | None = None

    @property
    def is_here(self) -> bool:
        return self._dismissed is not None

    def gather(self) -> None:
        """Returns when its threads are there: they are of the thread that began them, and end with it."""
        if self._library is None or self.is_here:
            return
        self._dismissed, gathered = threading.Event(), threading.Event()
        threading.Thread(target=self._stand, args=(self._dismissed, gathered), name="crowd", daemon=True).start()
        gathered.wait()

    def dismiss(self) -> None:
        if self._dismissed is not None:
            self._dismissed.set()
            self._dismissed = None

    def _stand(self, dismissed: threading.Event, gathered: threading.Event) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) is the work of each of them
        assert self._library is not None
        self._library.GOMP_parallel(nothing, None, ctypes.c_uint(self._size), ctypes.c_uint(0))
        gathered.set()
        dismissed.wait()


@contextmanager
def cores_watched(threads: int) -> Iterator[None]:
    """While the block runs, by a thread of its own. Until its first look nobody spins."""
    crowd, over = Crowd(threads), threading.Event()
    crowd.gather()
    watcher = threading.Thread(target=_watch, args=(crowd, threads, over), name="cores", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        crowd.dismiss()


def _watch(crowd: Crowd, threads: int, over: threading.Event) -> None:
    cores, before = len(os.sched_getaffinity(0)), take_sample()
    while not over.wait(LOOK_SECONDS):
        after = take_sample()
        if is_crowded(before, after, cores, threads):
            crowd.gather()
        else:
            crowd.dismiss()
        before = after


def _libgomp() -> ctypes.CDLL | None:
    """The one that torch has loaded; another OpenMP has switches of its own, and obeys OMP_WAIT_POLICY."""
    loaded = {line.split()[-1] for line in MAPS.read_text().splitlines() if "/libgomp" in line}
    try:
        return ctypes.CDLL(loaded.pop()) if len(loaded) == 1 else None
    except OSError:  # its file was replaced while we run: "(deleted)" stands behind its path then
        return None
