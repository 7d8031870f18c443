"""The memory of this process's device: capacity, use, and peak since `reset_peak`.

CUDA: the memory of the GPU, as torch counts it. CPU: the tightest of the machine, the cgroups and the process's own
limits. Resident pages count against the machine and the cgroups, mapped pages (touched or not) against the limits.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from app.domain.jobs.states import Reason
from app.domain.planning.memory import PROCESS_BYTES
from app.system.host import control_groups, read_integer
from worker.trainer.runtime.failures import Failure

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


def set_budget(device: torch.device, budget_bytes: int | None) -> None:
    """Limit this process to a budget of the GPU's memory, of which its CUDA context is a part. None: no limit.

    An allocation above it is an out-of-memory error here, and other processes on the GPU keep their memory. Raises
    Failure(OUT_OF_MEMORY) for a budget without space for anything but the context.
    """
    if budget_bytes is None or device.type != "cuda":
        return
    allocator_bytes = budget_bytes - PROCESS_BYTES["cuda"]
    if allocator_bytes <= 0:
        text = (
            f"The slot has {budget_bytes / 1e9:.2f} GB of the GPU, and its CUDA context takes "
            f"{PROCESS_BYTES['cuda'] / 1e9:.2f} GB. The operator can lower TUNERY_SLOTS_PER_GPU."
        )
        raise Failure(Reason.OUT_OF_MEMORY, text)
    total_bytes = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, allocator_bytes / total_bytes), device)


def measure(device: torch.device) -> DeviceMemory:
    """Return the memory of the device; on a CPU, that of the limit with the fewest free bytes.

    With a budget (`set_budget`) it is the budget, whatever other processes on the GPU use at this moment.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        fraction = torch.cuda.get_per_process_memory_fraction(device)
        if fraction < 1:
            return DeviceMemory(int(fraction * total) + PROCESS_BYTES["cuda"], used + PROCESS_BYTES["cuda"])
        cached = torch.cuda.memory_reserved(device) - used
        return DeviceMemory(free + cached + used + PROCESS_BYTES["cuda"], used + PROCESS_BYTES["cuda"])
    return min(_cpu_memories(), key=lambda memory: memory.free_bytes)


def free_host_bytes() -> int:
    """Return the free bytes of the host, by the limit that leaves the fewest."""
    return min(memory.free_bytes for memory in _cpu_memories())


def reset_peak(device: torch.device) -> None:
    """Measure the peak from now on. If the kernel forbids that, it stays the peak since the start of the process."""
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


def set_mmap_threshold() -> None:
    """If RLIMIT_DATA or RLIMIT_AS is set, have malloc map large blocks separately, so that freeing unmaps them.

    Otherwise freed memory stays in the heap and counts against these limits.
    """
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc
    if mallopt is not None and any(limit != resource.RLIM_INFINITY for limit in limits):
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def trim_threshold_bytes(device: torch.device) -> int:
    """Return the resident bytes above which the heap is trimmed between batches."""
    return int(TRIM_FRACTION * measure(device).capacity_bytes) if device.type == "cpu" else sys.maxsize


def trim_heap(device: torch.device, above_bytes: int) -> bool:
    """Return freed memory to the system if more than `above_bytes` are resident; CPU only. Returns whether it did.

    Batches of varying sizes fragment the heap: in 40 steps its peak became 7 % higher than with trimming at every batch
    above the planned peak. So it is trimmed when the memory is almost full, not before.
    """
    if device.type == "cuda" or used_bytes(device) <= above_bytes:
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
    return trim is not None


def free(device: torch.device) -> None:
    """Free memory after an out-of-memory error: garbage, and the caches of the allocators."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim_heap(device, above_bytes=0)


def _cpu_memories() -> list[DeviceMemory]:
    resident, memories = _status("VmRSS"), []
    if available := _number(Path("/proc/meminfo"), "MemAvailable:"):
        memories.append(DeviceMemory(resident + available, resident))
    for group in control_groups():
        limit, current = read_integer(group, "memory.max"), read_integer(group, "memory.current")
        if limit is not None and current is not None:
            reclaimable = _number(group / "memory.stat", "inactive_file", unit=1) or 0  # freed before any process dies
            memories.append(DeviceMemory(resident + limit - current + reclaimable, resident))
    for kind, field in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft_limit, _ = resource.getrlimit(kind)
        if soft_limit != resource.RLIM_INFINITY:
            memories.append(DeviceMemory(soft_limit, _status(field), counts_mapped_memory=True))
    return memories


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
