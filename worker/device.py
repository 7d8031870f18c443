"""What this machine says of itself, without torch: for the workers' row, and to tell an OOM kill from a crash."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits")
NVIDIA_SMI_SECONDS = 10  # on a machine whose driver hangs it never returns
CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")
VMSTAT = Path("/proc/vmstat")


def describe_machine() -> dict[str, Any]:
    gpus = list_gpus()
    return {
        "device": gpus[0]["name"] if gpus else cpu_name(),
        "gpus": gpus,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "versions": {"tunery": _version("tunery"), "celery": _version("celery"), "python": platform.python_version()},
    }


def list_gpus() -> list[dict[str, Any]]:
    """Every NVIDIA GPU the driver shows; none where there is no driver, or one that does not answer."""
    try:
        answer = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(", ") for line in answer.stdout.splitlines())
    return [{"uuid": row[0], "name": row[1], "memory_mib": row[2]} for row in rows if len(row) == 3]


def cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def oom_kills() -> int:
    """How often the kernel has killed for memory, here and in our cgroup: only whether it has risen means anything."""
    return _counter(CGROUP_EVENTS) + _counter(VMSTAT)


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
