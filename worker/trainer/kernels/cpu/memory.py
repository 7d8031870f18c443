"""The memory of a process on a CPU: the tightest of the machine, the cgroups and the process's own limits.

Resident pages count against the machine and the cgroups, mapped pages (touched or not) against the limits.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.system.host import control_groups, read_integer

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK_BYTES = 256 << 10
TRIM_FRACTION = 0.95  # of the capacity; a plan may use up to 0.97
RESET_PEAK = "5"  # proc(5): sets VmHWM to the current resident size


@dataclass(frozen=True)
class DeviceMemory:
    """The bytes that this process may use in total, and those that it uses."""

    capacity_bytes: int
    used_bytes: int
    counts_mapped_memory: bool = False  # mapped pages count even if they were never touched

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes


class CpuMemory:
    def set_limits(self, _budget_bytes: int | None) -> None:
        """If RLIMIT_DATA or RLIMIT_AS is set, have malloc map large blocks separately, so that freeing unmaps them.

        Otherwise freed memory stays in the heap and counts against these limits. A budget is one of a GPU's memory.
        """
        limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc
        if mallopt is not None and any(limit != resource.RLIM_INFINITY for limit in limits):
            mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)

    def measure(self) -> DeviceMemory:
        """Return the memory by the limit that leaves the fewest free bytes."""
        return min(_memories(), key=lambda memory: memory.free_bytes)

    def used_bytes(self) -> int:
        return _status("VmRSS")

    def reset_peak(self) -> None:
        """Measure the peak from now on. If the kernel forbids that, it stays that since the start of the process."""
        try:
            CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
        except OSError:
            return

    def peak_bytes(self) -> int:
        return _status("VmHWM")

    def peak_bytes_of_process(self) -> int:
        """Return the peak that metrics show."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def trim(self) -> None:
        """Return freed memory of the heap to the system."""
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc
            trim(0)

    def trim_if_full(self) -> None:
        """Batches of varying sizes fragment the heap: in 40 steps its peak became 7 % higher than with trimming at
        every batch above the planned peak. So it is trimmed when the memory is almost full, not before.
        """
        if self.used_bytes() > TRIM_FRACTION * self.measure().capacity_bytes:
            self.trim()

    def free(self) -> None:
        """Free memory after an out-of-memory error: garbage, and the caches of the allocators."""
        gc.collect()
        self.trim()


def _memories() -> Iterator[DeviceMemory]:
    resident = _status("VmRSS")
    if available := _number(Path("/proc/meminfo"), "MemAvailable:"):
        yield DeviceMemory(resident + available, resident)
    for group in control_groups():
        limit, current = read_integer(group, "memory.max"), read_integer(group, "memory.current")
        if limit is not None and current is not None:
            reclaimable = _number(group / "memory.stat", "inactive_file", unit=1) or 0  # freed before any process dies
            yield DeviceMemory(resident + limit - current + reclaimable, resident)
    for kind, field in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft_limit, _ = resource.getrlimit(kind)
        if soft_limit != resource.RLIM_INFINITY:
            yield DeviceMemory(soft_limit, _status(field), counts_mapped_memory=True)


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 if it is absent."""
    return _number(STATUS, f"{field}:") or 0


def _number(path: Path, name: str, unit: int = 1024) -> int | None:
    """Return the number behind `name` at the start of a line, times `unit`; None if there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines if line.startswith(name))
    return next((int(words[1]) * unit for words in fields), None)
