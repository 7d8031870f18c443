"""Metrics of GPUs from the output of nvidia-smi."""

from __future__ import annotations

import math
import sys

import pytest
from prometheus_client import CollectorRegistry

from worker.node.gpu_metrics import GpuMetrics, parse_readings

OUTPUT = """\
GPU-1a, NVIDIA H100 80GB HBM3, 37, 20480, 81559, 41, 312.50
GPU-2b, NVIDIA H100 80GB HBM3, 0, 4, 81559, 33, [N/A]
"""


def test_the_output_of_nvidia_smi_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second = parse_readings(OUTPUT)
    assert (first.uuid, first.name) == ("GPU-1a", "NVIDIA H100 80GB HBM3")
    assert first.utilization_ratio == pytest.approx(0.37)
    assert first.used_bytes == 20480 << 20
    assert first.total_bytes == 81559 << 20
    assert math.isnan(second.watts)


def test_a_worker_exposes_only_the_gpus_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [each.uuid for each in parse_readings(OUTPUT)] == ["GPU-2b"]


def test_a_scrape_returns_the_last_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpu_metrics = GpuMetrics((sys.executable, "-c", f"print({OUTPUT!r}, end='')"))
    gpu_metrics.join()
    registry = CollectorRegistry()
    registry.register(gpu_metrics)
    labels = {"uuid": "GPU-1a", "gpu": "NVIDIA H100 80GB HBM3"}
    assert registry.get_sample_value("tunery_gpu_memory_used_bytes", labels) == 20480 << 20


def test_without_nvidia_smi_there_are_no_values() -> None:
    gpu_metrics = GpuMetrics(("/nowhere/nvidia-smi",))
    gpu_metrics.join()
    assert list(gpu_metrics.collect()) == []
