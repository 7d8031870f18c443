"""This machine and process: the CPU, by whose name results are comparable in speed and bit for bit, control groups
(v2), a clock that includes the time during which the machine is suspended, and a child that ends with its parent.

The limits of a process's own group and of all parents apply, see cgroups(7).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from app.domain.artifacts.full_disk import size_text
from app.domain.planning.duration import DEFAULT_CORE_FLOPS

CPUINFO = Path("/proc/cpuinfo")
# FLOP/s of one core in the matrix products of a 135M model: 5e11 was measured on AMD's family 26 (avx512_bf16 in full
# width), 2e11 on its older families; with AMX the products of a step were 2.2 times as fast as on the older families.
FAST_CORE_FLOPS = 5e11
WIDE_FAMILY = 26  # AMD's first family that executes 512 bits at once instead of in two halves
FLOAT32_CORE_FLOPS = 1e11  # float32, faster than emulated bfloat16; calculated: 32 FLOP per cycle with AVX2
# The instructions with which a matrix product in 16 bits is no slower than in float32, but for a factor of up to 2 of
# avx512_bf16 on processors that halve it. Without them it takes 5 (AVX-512) to 90 times as long (AVX2).
FLAGS_OF_DTYPE = {
    "bfloat16": {"amx_bf16", "avx512_bf16"},
    "float16": {"amx_fp16", "avx512_fp16"},
}
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_GROUP_FILE = Path("/proc/self/cgroup")
CPU_QUOTA = "cpu.max"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT_PID_VARIABLE = "TUNERY_PARENT_PID"  # of a program of the trainer that ends with its parent

# Loaded before a fork: between fork and exec, the child must not take the loader's lock.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.machine()


def usable_cores() -> int:
    """The number of logical processors that this process may use, limited by taskset and the quotas of containers."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota_cores(group / CPU_QUOTA) for group in control_groups())
    return min([allowed, *(cores for cores in quotas if cores)])


def _quota_cores(path: Path) -> int | None:
    """The cores of a quota, at least one; "200000 100000" are two. None without the file, or if it contains "max"."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def free_space(directory: Path, low_percent: float) -> tuple[str, bool]:
    """What is free on the disk of a directory, in words, and whether that is too little. Raises OSError."""
    usage = shutil.disk_usage(directory)
    return f"{size_text(usage.free)} of {size_text(usage.total)} are free", usage.free < usage.total * low_percent / 100


def cpu_flags() -> frozenset[str]:
    return frozenset(_cpuinfo().get("flags", "").split())


def multiplies_fast(dtype: str) -> bool:
    """Whether this processor has instructions for matrix products in `dtype`."""
    return dtype == "float32" or not FLAGS_OF_DTYPE[dtype].isdisjoint(cpu_flags())


def core_flops() -> float:
    """The estimated FLOP/s of one core, before anything was measured."""
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    family = info.get("cpu family", "")
    is_wide = info.get("vendor_id") == "AuthenticAMD" and family.isdecimal() and int(family) >= WIDE_FAMILY
    if "amx_bf16" in flags or ("avx512_bf16" in flags and is_wide):
        return FAST_CORE_FLOPS
    return DEFAULT_CORE_FLOPS if "avx512_bf16" in flags or not flags else FLOAT32_CORE_FLOPS


def _cpuinfo() -> dict[str, str]:
    """The entries of /proc/cpuinfo for the first logical processor; empty if there is no such file."""
    info: dict[str, str] = {}
    with suppress(OSError):
        first, _, _ = CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")
        for line in first.split("\n"):
            name, _, value = line.partition(":")
            info[name.strip()] = value.strip()
    return info


def control_groups() -> list[Path]:
    """The process's own group and its parents; empty without cgroups v2. Containers usually see theirs as the root."""
    try:
        lines = OWN_GROUP_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    name = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if name is None or ".." in name:  # the own group is outside of the mounted hierarchy
        return [CGROUP_ROOT]
    own = CGROUP_ROOT / name.lstrip("/")
    return [own, *(parent for parent in own.parents if parent.is_relative_to(CGROUP_ROOT))]


def read_integer(group: Path, name: str) -> int | None:
    """The number in a file of the group; None if there is no such file or if it contains "max"."""
    try:
        return int((group / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def boottime_seconds() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def die_with_parent(parent_pid: int, death_signal: int = signal.SIGKILL) -> bool:
    """Have the kernel signal this process when its parent ends. False if it has ended already: then exit.

    The signal is sent when the thread that started this process ends.
    """
    if _libc is None:
        return True
    _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
    return os.getppid() == parent_pid
