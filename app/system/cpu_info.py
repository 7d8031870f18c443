"""Which processor this is: its name decides what is comparable, in speed and to the bit; its flags, a first guess."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

from app.domain.planning.duration import DEFAULT_CORE_FLOPS

CPUINFO = Path("/proc/cpuinfo")
# Of one core in the products of a 135M model: 5e11 was measured on AMD's family 26 (avx512_bf16, in full width), and
# its older families at 2e11; with AMX steps' products were seen 2.2 times as fast as with those.
FAST_CORE_FLOPS = 5e11
WIDE_FAMILY = 26  # AMD's first whose 512 bits are not two halves, one after the other
PLAIN_CORE_FLOPS = 1e11  # float32, which is faster where bfloat16 is imitated: reckoned, 32 FLOP a cycle with AVX2


def cpu_name() -> str:
    return _facts().get("model name") or platform.machine()


def cpu_flags() -> frozenset[str]:
    return frozenset(_facts().get("flags", "").split())


def core_flops() -> float:
    """FLOP a second that one core can be guessed to reach, before it was seen at work."""
    facts = _facts()
    flags = facts.get("flags", "").split()
    family = facts.get("cpu family", "")
    is_wide = facts.get("vendor_id") == "AuthenticAMD" and family.isdecimal() and int(family) >= WIDE_FAMILY
    if "amx_bf16" in flags or ("avx512_bf16" in flags and is_wide):
        return FAST_CORE_FLOPS
    return DEFAULT_CORE_FLOPS if "avx512_bf16" in flags or not flags else PLAIN_CORE_FLOPS


def _facts() -> dict[str, str]:
    """Of the first logical processor; what the system does not say is absent."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        first, _, _ = CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")
        for line in first.split("\n"):
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    return facts
