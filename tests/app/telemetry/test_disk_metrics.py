"""The space of the data disk: a disk that fails or hangs costs its own values only."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from app.telemetry import disk_metrics
from app.telemetry.disk_metrics import DiskMetrics


def free_bytes(metrics: DiskMetrics) -> float | None:
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry.get_sample_value("tunery_data_disk_free_bytes")


def test_free_space_is_exposed(tmp_path: Path) -> None:
    assert (free_bytes(DiskMetrics(tmp_path)) or 0) > 0


def test_a_directory_that_cannot_be_read_has_no_values(tmp_path: Path) -> None:
    assert free_bytes(DiskMetrics(tmp_path / "nowhere")) is None


def test_a_file_server_that_hangs_is_read_once_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, calls, disk_usage = threading.Event(), [], shutil.disk_usage

    def hang(path: Path) -> object:
        calls.append(path)
        answers.wait(30)
        return disk_usage(path)

    monkeypatch.setattr(shutil, "disk_usage", hang)
    monkeypatch.setattr(disk_metrics, "TIMEOUT_SECONDS", 0.01)
    metrics = DiskMetrics(tmp_path)
    assert [free_bytes(metrics) for _ in range(2)] == [None, None]
    assert len(calls) == 1
    answers.set()
    monkeypatch.setattr(disk_metrics, "TIMEOUT_SECONDS", 30)
    assert (free_bytes(metrics) or 0) > 0
