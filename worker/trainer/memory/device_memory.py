"""How much memory there is for this process, how much it has taken, and how much at most since somebody asked.

CUDA: the card's, as torch counts it. CPU: the least of the machine, the cgroups and the process's own limits, each with
what counts against it: resident pages for the first two, mapped ones for the others, whether touched or not.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from app.domain.planning.memory import PROCESS_BYTES
from app.system.cgroups import control_groups, read_integer

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK_BYTES = 256 << 10
BRIM = 0.95  # of the memory there is; a plan may count on 0.97
RESET_PEAK = "5"  # proc(5): set VmHWM to what is resident now


@dataclass(frozen=True)
class DeviceMemory:
    """What this process may take at most, and what it has taken of it."""

    capacity_bytes: int
    used_bytes: int
    counts_mapped: bool = False  # also what is mapped and never touched

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes


def measure(device: torch.device) -> DeviceMemory:
    """Where the least is left."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        idle = torch.cuda.memory_reserved(device) - used
        return DeviceMemory(free + idle + used + PROCESS_BYTES["cuda"], used + PROCESS_BYTES["cuda"])
    return min(_cpu_memories(), key=lambda memory: memory.free_bytes)


def reset_peak(device: torch.device) -> None:
    """Count the peak from here. Where the kernel does not let us, it stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return


def used_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) + PROCESS_BYTES["cuda"]
    return _status("VmRSS")


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + PROCESS_BYTES["cuda"]
    return _status("VmHWM")


def map_large_blocks_apart() -> None:
    """Where the process has a limit of its own, map every large block by itself, so that freeing it unmaps it.

    Freed memory otherwise stays in the heap and counts against RLIMIT_DATA and RLIMIT_AS for good.
    """
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc
    if mallopt is not None and any(limit != resource.RLIM_INFINITY for limit in limits):
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def trim_threshold_bytes(device: torch.device) -> int:
    """So much may be resident before what was freed is worth giving back, whatever was planned."""
    return int(BRIM * measure(device).capacity_bytes) if device.type == "cpu" else sys.maxsize


def give_back(device: torch.device, above_bytes: int) -> bool:
    """Return what was freed to the machine, where more than `above_bytes` is resident. CPU only; whether it did.

    Rows of ever new sizes leave gaps in the heap: within ten steps it was seen to grow by 12 % over what any step
    needs. To trim it after every step would cost a tenth of the speed, as its pages must be zeroed again.
    """
    if device.type == "cuda" or used_bytes(device) <= above_bytes:
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
    return trim is not None


def free(device: torch.device) -> None:
    """After a shortage: what its exception held, and what the allocators keep of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    give_back(device, above_bytes=0)


def _cpu_memories() -> list[DeviceMemory]:
    resident, memories = _status("VmRSS"), []
    if available := _number(Path("/proc/meminfo"), "MemAvailable:"):
        memories.append(DeviceMemory(resident + available, resident))
    for group in control_groups():
        limit, current = read_integer(group, "memory.max"), read_integer(group, "memory.current")
        if limit is not None and current is not None:
            idle = _number(group / "memory.stat", "inactive_file", unit=1) or 0  # given back before anybody is killed
            memories.append(DeviceMemory(resident + limit - current + idle, resident))
    for kind, counted in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            memories.append(DeviceMemory(soft, _status(counted), counts_mapped=True))
    return memories


def _status(name: str) -> int:
    return _number(STATUS, f"{name}:") or 0


def _number(path: Path, name: str, unit: int = 1024) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith(name))
    return next((int(words[1]) * unit for words in found), None)
