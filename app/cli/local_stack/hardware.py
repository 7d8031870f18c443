"""GPUs and CPU cores of this machine, determined without torch, which the CLI never imports."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

NVIDIA_SMI_TIMEOUT_SECONDS = 20.0  # the first call takes several seconds


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs; empty without a working driver."""
    output = nvidia_smi("--query-gpu=name", "--format=csv,noheader")
    return output.strip().split("\n") if output and output.strip() else []


def gpu_groups() -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each GPU worker, with TUNERY_GPUS_PER_JOB GPUs each; None for a worker without it.

    Each GPU has TUNERY_SLOTS_PER_GPU workers; several GPUs of one job have one.
    """
    devices, size = _training_devices(), _gpus_per_job()
    slots = max(1, int(os.environ.get("TUNERY_SLOTS_PER_GPU") or 1)) if devices and size == 1 else 1
    groups = len(devices) // size
    if groups < 2:
        return [None] * slots
    each = [",".join(devices[size * number : size * (number + 1)]) for number in range(groups)]
    return [group for group in each for _ in range(slots)]


def unused_gpus_text() -> str | None:
    """Which GPUs are left over when TUNERY_GPUS_PER_JOB does not divide their number; None if none are."""
    devices, size = _training_devices(), _gpus_per_job()
    unused = devices[len(devices) - len(devices) % size :]
    if not unused:
        return None
    return f"{', '.join(unused)} of {len(devices)} train no job, because TUNERY_GPUS_PER_JOB is {size}"


def _training_devices() -> list[str]:
    """The GPUs that workers may use, as CUDA_VISIBLE_DEVICES names them; empty without a GPU."""
    gpu_names = gpus() if os.environ.get("TUNERY_DEVICE", "auto") != "cpu" else []
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpu_names or visible_devices is None:
        return [str(number) for number in range(len(gpu_names))]
    return [*filter(None, visible_devices.split(","))]


def _gpus_per_job() -> int:
    return max(1, int(os.environ.get("TUNERY_GPUS_PER_JOB") or 1))


def nvidia_smi(*arguments: str) -> str | None:
    """Standard output of nvidia-smi; None if it is not installed, empty if it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_SECONDS)
        return done.stdout if done.returncode == 0 else ""
    return ""


def device_text() -> str:
    """The device that jobs run on, as text."""
    setting = os.environ.get("TUNERY_DEVICE", "auto")
    gpu_names = gpus() if setting != "cpu" else []
    if gpu_names:
        return gpu_names[0]
    reason = "no GPU found: " if setting != "cpu" else ""
    return f"the CPU ({reason}only suitable for tests)"
