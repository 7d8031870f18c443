"""Describe this machine without torch: devices and memory for the workers' row, OOM kills to classify exits, and
metrics of the GPUs, from nvidia-smi.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.domain.planning.estimate import Device
from app.system.host import control_groups, core_flops, cpu_name, read_integer, usable_cores

GPUS = ("nvidia-smi", "--query-gpu=uuid,name,memory.total,mig.mode.current", "--format=csv,noheader,nounits")
NVIDIA_SMI_TIMEOUT_SECONDS = 10  # with a driver that hangs, nvidia-smi never returns
# A line of `nvidia-smi -L`, which has the UUIDs of MIG slices, but not their memory.
LISTED = re.compile(
    r"GPU \d+: .*\(UUID: (?P<gpu>\S+)\)|\s+(?P<profile>MIG \S+)\s+Device\s+(?P<index>\d+): \(UUID: (?P<uuid>\S+)\)"
)
VMSTAT = Path("/proc/vmstat")
QUERY = (
    "nvidia-smi",
    "--query-gpu=uuid,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw",
    "--format=csv,noheader,nounits",
)
# The columns of QUERY after the first two: name and documentation of the metric, and its units in one of nvidia-smi's.
FAMILIES = (
    ("utilization_ratio", "Share of the time in which a kernel ran.", 0.01),
    ("memory_used_bytes", "Used memory of the GPU.", 1 << 20),
    ("memory_bytes", "Memory of the GPU.", 1 << 20),
    ("temperature_celsius", "Temperature of the GPU.", 1),
    ("power_watts", "Power draw of the GPU.", 1),
)
MEASURE_SECONDS = 15.0


def describe_machine(device_setting: str = "auto") -> dict[str, Any]:
    """The machine's part of the workers' row."""
    gpus, device = list_gpus(), training_device(device_setting)
    return {
        "device": device.name,
        "kind": device.kind,
        "memory_bytes": device.memory_bytes,
        # In GiB, so that hosts of one type are one kind of device in the plans of the API.
        "host_bytes": usable_memory_bytes() >> 30 << 30,
        "core_flops": device.core_flops,
        "gpus": gpus,
        "cpus": usable_cores(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "versions": {
            "tunery": _package_version("tunery"),
            "celery": _package_version("celery"),
            "python": platform.python_version(),
        },
    }


def list_gpus() -> list[dict[str, Any]]:
    """Every NVIDIA GPU or MIG slice that this process may use.

    An empty list without a driver, or with one that does not respond.
    """
    try:
        rows = [row for line in _output_of(*GPUS).splitlines() if len(row := line.split(", ")) == 4]
        gpus = [{"uuid": row[0], "name": row[1], "memory_mib": row[2]} for row in rows]
        divided = {row[0]: row[1] for row in rows if row[3] == "Enabled"}
        slices = _mig_slices(divided) if divided else {}
    except (OSError, subprocess.SubprocessError):
        return []
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if named := [name for name in names if name.startswith("MIG")]:
        known = [each for of_gpu in slices.values() for each in of_gpu]
        return [each for name in named for each in known if each["uuid"].startswith(name)]
    # CUDA uses the first slice of a GPU that is named as a whole.
    return [each for gpu in visible_gpus(gpus) for each in slices.get(gpu["uuid"], [gpu])[:1]]


def visible_gpus(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, in its order; nvidia-smi lists all. If it names MIG slices: all."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return gpus
    visible = []
    for name in filter(None, map(str.strip, setting.split(","))):
        if name.startswith("MIG"):
            return gpus
        match = next(
            (gpu for index, gpu in enumerate(gpus) if str(index) == name or gpu["uuid"].startswith(name)), None
        )
        if match is None:  # as CUDA does, ignore everything after an invalid name
            break
        visible.append(match)
    return visible


@lru_cache(maxsize=4)
def training_gpu_uuids(gpus: int, device_setting: str = "auto") -> tuple[str, ...]:
    """The UUIDs of the GPUs that a job of this worker trains on; empty on a CPU."""
    return tuple(gpu["uuid"] for gpu in list_gpus()[:gpus]) if device_setting != "cpu" else ()


def gpu_problem(gpus_per_job: int, device_setting: str = "auto") -> str | None:
    """A sentence if this worker has too few GPUs for its jobs, or one of them has disappeared; None otherwise."""
    if training_device(device_setting).kind == "cpu":
        return None
    present = [gpu["uuid"] for gpu in list_gpus()]
    if lost := [uuid for uuid in training_gpu_uuids(gpus_per_job, device_setting) if uuid not in present]:
        return f"nvidia-smi does not list {', '.join(lost)} any more. Reset the GPU or reboot the machine."
    if len(present) < gpus_per_job:
        seen = f"this worker sees {len(present)} of the {gpus_per_job} GPUs of a job"
        return f"{seen}. Lower TUNERY_GPUS_PER_JOB, or make more GPUs visible to it."
    return None


def unused_gpu_uuids(gpus_per_job: int, device_setting: str = "auto") -> list[str]:
    """The GPUs that this worker sees beyond those of its jobs."""
    used = training_gpu_uuids(gpus_per_job, device_setting)
    return [gpu["uuid"] for gpu in list_gpus() if gpu["uuid"] not in used] if used else []


@lru_cache(maxsize=4)
def training_device(device_setting: str = "auto") -> Device:
    """The device that trainers of this worker use: the first GPU, or the CPU with the memory it may use."""
    gpus = list_gpus() if device_setting != "cpu" else []
    if gpus:
        return Device("cuda", gpus[0]["name"], int(gpus[0]["memory_mib"]) << 20)
    return Device("cpu", cpu_name(), usable_memory_bytes(), usable_cores(), core_flops())


def usable_memory_bytes() -> int:
    """The machine's memory, or the limit of this process's control groups if that is lower."""
    limits = (read_integer(group, "memory.max") for group in control_groups())
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def oom_kill_count() -> int:
    """A counter that rises when the kernel kills for memory, here or in our control groups; its value means nothing."""
    return _read_oom_kills(VMSTAT) + sum(_read_oom_kills(group / "memory.events") for group in control_groups())


def _output_of(*command: str) -> str:
    """What nvidia-smi prints. Raises OSError, SubprocessError."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_SECONDS, check=True
    ).stdout


def _mig_slices(names: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """{UUID of the GPU: its slices} for {UUID: name} of the GPUs in MIG mode. Raises OSError, SubprocessError.

    The XML has the memory of a slice by its index, and no UUID.
    """
    memory_mib = {
        (gpu.findtext("uuid"), each.findtext("index")): each.findtext("fb_memory_usage/total", "").split()[0]
        for gpu in ElementTree.fromstring(_output_of("nvidia-smi", "-q", "-x")).iter("gpu")
        for each in gpu.iter("mig_device")
    }
    slices: dict[str, list[dict[str, Any]]] = {uuid: [] for uuid in names}
    gpu_uuid = ""
    for found in filter(None, map(LISTED.match, _output_of("nvidia-smi", "-L").splitlines())):
        gpu_uuid = found["gpu"] or gpu_uuid
        if found["uuid"]:
            name = f"{names[gpu_uuid]} {found['profile']}"  # as torch has it
            size = memory_mib[gpu_uuid, found["index"]]
            slices[gpu_uuid].append({"uuid": found["uuid"], "name": name, "memory_mib": size})
    return slices


def _read_oom_kills(path: Path) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def _package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class GpuMetrics(Collector):
    def __init__(self, command: Sequence[str] = QUERY) -> None:
        self._command = command
        self._rows: list[list[str]] = []  # of QUERY
        self._measured_at = -float("inf")
        self._lock = threading.Lock()
        self._thread = threading.Thread()
        self._measure_in_background()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self._measure_in_background()
        for column, (name, documentation, unit) in enumerate(FAMILIES, 2):
            family = GaugeMetricFamily(f"tunery_gpu_{name}", documentation, labels=["uuid", "gpu"])
            for row in self._rows:
                family.add_metric(row[:2], unit * _number(row[column]))
            if self._rows:
                yield family

    def join(self) -> None:
        """Wait for the measurement that runs."""
        self._thread.join()

    def _measure_in_background(self) -> None:
        """Start a measurement, unless the last one is recent."""
        with self._lock:
            if time.monotonic() - self._measured_at < MEASURE_SECONDS:
                return
            self._measured_at = time.monotonic()
            self._thread = threading.Thread(target=self._measure, name="nvidia-smi", daemon=True)
            self._thread.start()

    def _measure(self) -> None:
        try:
            rows = [line.split(", ") for line in _output_of(*self._command).splitlines()]
        except (OSError, subprocess.SubprocessError):
            rows = []
        gpus = visible_gpus([{"uuid": row[0], "row": row} for row in rows if len(row) == 2 + len(FAMILIES)])
        self._rows = [gpu["row"] for gpu in gpus]


def _number(text: str) -> float:
    """nvidia-smi writes [N/A] for what a GPU does not report."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
