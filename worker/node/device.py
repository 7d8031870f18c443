"""What this machine says of itself, without torch: for the workers' row, and to tell an OOM kill from a crash."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from app.domain.planning.estimate import Device
from app.system.cgroups import control_groups, number
from app.system.cpu_info import core_flops, cpu_name

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits")
NVIDIA_SMI_SECONDS = 10  # on a machine whose driver hangs it never returns
VMSTAT = Path("/proc/vmstat")


def describe_machine(wanted: str = "auto") -> dict[str, Any]:
    gpus, device = list_gpus(), training_device(wanted)
    return {
        "device": device.name,
        "kind": device.kind,
        "memory_bytes": device.memory_bytes,
        "core_flops": device.core_flops,
        "gpus": gpus,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "versions": {"tunery": _version("tunery"), "celery": _version("celery"), "python": platform.python_version()},
    }


def list_gpus() -> list[dict[str, Any]]:
    """Every NVIDIA GPU that we may use; none where there is no driver, or one that does not answer."""
    try:
        answer = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(", ") for line in answer.stdout.splitlines())
    return visible([{"uuid": row[0], "name": row[1], "memory_mib": row[2]} for row in rows if len(row) == 3])


def visible(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that CUDA_VISIBLE_DEVICES leaves us, in its order; nvidia-smi shows them all. Names of MIG slices: all."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return gpus
    found = []
    for name in filter(None, map(str.strip, given.split(","))):
        if name.startswith("MIG"):
            return gpus
        chosen = next(
            (gpu for number, gpu in enumerate(gpus) if str(number) == name or gpu["uuid"].startswith(name)), None
        )
        if chosen is None:  # CUDA, too, ignores what follows an invalid one
            break
        found.append(chosen)
    return found


@lru_cache(maxsize=4)
def training_device(wanted: str = "auto") -> Device:
    """Where a trainer of this worker trains: the first GPU, or the CPU with the memory it may use."""
    gpus = list_gpus() if wanted != "cpu" else []
    if gpus:
        return Device("cuda", gpus[0]["name"], int(gpus[0]["memory_mib"]) << 20)
    return Device("cpu", cpu_name(), usable_bytes(), len(os.sched_getaffinity(0)), core_flops())


def usable_bytes() -> int:
    """The machine's memory, or what our control groups allow."""
    limits = (number(group, "memory.max") for group in control_groups())
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def oom_kills() -> int:
    """How often the kernel has killed for memory, here and in our groups: only whether it has risen means anything."""
    return _counter(VMSTAT) + sum(_counter(group / "memory.events") for group in control_groups())


def _counter(path: Path) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
