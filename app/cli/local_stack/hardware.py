"""What this machine computes with, asked of the system and not of torch, which the CLI never imports."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

NVIDIA_SMI_SECONDS = 20.0  # a cold driver takes several


def gpus() -> list[str]:
    """NVIDIA GPUs by name; empty without any, or without a driver that answers."""
    answer = nvidia_smi("--query-gpu=name", "--format=csv,noheader")
    return answer.strip().split("\n") if answer and answer.strip() else []


def gpu_groups() -> list[str | None]:
    """CUDA_VISIBLE_DEVICES for each GPU worker: one for so many GPUs as a job takes. [None]: one worker, as it is."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = gpus() if os.environ.get("TUNERY_DEVICE", "auto") != "cpu" else []
    names = [str(number) for number in range(len(found))] if given is None else [*filter(None, given.split(","))]
    size = max(1, int(os.environ.get("TUNERY_GPUS_PER_JOB") or 1))
    whole = len(names) // size
    if not found or whole < 2:
        return [None]
    return [",".join(names[size * number : size * (number + 1)]) for number in range(whole)]


def nvidia_smi(*arguments: str) -> str | None:
    """None where there is no driver; its error where there is one and it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS)
        return done.stdout if done.returncode == 0 else ""
    return ""


def cpu_cores() -> int:
    """Those we may use, which a container or taskset makes fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> str:
    """What jobs run on, in words."""
    asked = os.environ.get("TUNERY_DEVICE", "auto")
    found = gpus() if asked != "cpu" else []
    if found:
        return found[0]
    reason = "no GPU found: " if asked != "cpu" else ""
    return f"the CPU ({reason}for trying out)"
