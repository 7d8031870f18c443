"""Metrics of the GPUs of this worker, from nvidia-smi.

A scrape returns the last values and starts a new measurement if they are old, so nvidia-smi, which takes a second and
hangs with a broken driver, delays no scrape.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.node.device import NVIDIA_SMI_TIMEOUT_SECONDS, visible_gpus

QUERY = (
    "nvidia-smi",
    "--query-gpu=uuid,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw",
    "--format=csv,noheader,nounits",
)
MEASURE_SECONDS = 15.0
MIB = 1 << 20


@dataclass(frozen=True)
class GpuReading:
    """NaN stands for a value that this GPU does not report."""

    uuid: str
    name: str
    utilization_ratio: float
    used_bytes: float
    total_bytes: float
    celsius: float
    watts: float


class GpuMetrics(Collector):
    def __init__(self, command: Sequence[str] = QUERY) -> None:
        self._command = command
        self._readings: list[GpuReading] = []
        self._measured_at = -float("inf")
        self._lock = threading.Lock()
        self._thread = threading.Thread()
        self._measure_in_background()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self._measure_in_background()
        readings = self._readings
        if not readings:
            return
        for name, documentation, values in (
            ("utilization_ratio", "Share of the time in which a kernel ran.", [r.utilization_ratio for r in readings]),
            ("memory_used_bytes", "Used memory of the GPU.", [r.used_bytes for r in readings]),
            ("memory_bytes", "Memory of the GPU.", [r.total_bytes for r in readings]),
            ("temperature_celsius", "Temperature of the GPU.", [r.celsius for r in readings]),
            ("power_watts", "Power draw of the GPU.", [r.watts for r in readings]),
        ):
            family = GaugeMetricFamily(f"tunery_gpu_{name}", documentation, labels=["uuid", "gpu"])
            for reading, value in zip(readings, values, strict=True):
                family.add_metric([reading.uuid, reading.name], value)
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
            done = subprocess.run(
                self._command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            self._readings = []
            return
        self._readings = parse_readings(done.stdout)


def parse_readings(text: str) -> list[GpuReading]:
    """The readings of the GPUs that this process may use."""
    rows = [line.split(", ") for line in text.splitlines()]
    visible = visible_gpus([{"uuid": row[0], "values": row} for row in rows if len(row) == 7])
    return [_reading(gpu["values"]) for gpu in visible]


def _reading(row: list[str]) -> GpuReading:
    utilization, used, total, celsius, watts = map(_number, row[2:])
    return GpuReading(row[0], row[1], utilization / 100, used * MIB, total * MIB, celsius, watts)


def _number(text: str) -> float:
    """nvidia-smi writes [N/A] for what a GPU does not report."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
