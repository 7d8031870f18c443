"""The CPU: its name, by which results are comparable in speed and bit for bit, its cores, an estimate of its speed."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from app.domain.planning.duration import DEFAULT_CORE_FLOPS

CPUINFO = Path("/proc/cpuinfo")
# FLOP/s of one core in the matrix products of a 135M model: 5e11 was measured on AMD's family 26 (avx512_bf16 in full
# width), 2e11 on its older families; with AMX the products of a step were 2.2 times as fast as on the older families.
FAST_CORE_FLOPS = 5e11
WIDE_FAMILY = 26  # AMD's first family that executes 512 bits at once instead of in two halves
FLOAT32_CORE_FLOPS = 1e11  # float32, faster than emulated bfloat16; calculated: 32 FLOP per cycle with AVX2


def cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.machine()


def usable_cores() -> int:
    """The number of logical processors that this process may run on, which a container or taskset can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> frozenset[str]:
    return frozenset(_cpuinfo().get("flags", "").split())


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
