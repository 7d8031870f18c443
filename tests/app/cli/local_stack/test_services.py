"""A worker for each GPU, or for each group of as many as a job takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.local_stack import hardware, services


@pytest.mark.parametrize(
    ("gpus", "environment", "groups"),
    [
        (0, {}, [None]),
        (1, {}, [None]),
        (3, {}, ["0", "1", "2"]),
        (4, {"TUNERY_GPUS_PER_JOB": "2"}, ["0,1", "2,3"]),
        (3, {"TUNERY_GPUS_PER_JOB": "2"}, [None]),
        (8, {"CUDA_VISIBLE_DEVICES": "5,GPU-1a"}, ["5", "GPU-1a"]),
        (2, {"TUNERY_DEVICE": "cpu"}, [None]),
        (0, {"TUNERY_SLOTS_PER_GPU": "2"}, [None]),
        (1, {"TUNERY_SLOTS_PER_GPU": "2"}, [None, None]),
        (2, {"TUNERY_SLOTS_PER_GPU": "2"}, ["0", "0", "1", "1"]),
        (4, {"TUNERY_SLOTS_PER_GPU": "2", "TUNERY_GPUS_PER_JOB": "2"}, ["0,1", "2,3"]),
    ],
)
def test_every_gpu_gets_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, environment: dict[str, str], groups: list[str | None]
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "TUNERY_GPUS_PER_JOB", "TUNERY_SLOTS_PER_GPU", "TUNERY_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hardware, "gpus", lambda: ["NVIDIA L4"] * gpus)
    has_rest = gpus % int(environment.get("TUNERY_GPUS_PER_JOB", 1)) > 0
    assert (hardware.unused_gpus_text() is not None) == has_rest
    found = [each for each in services.programs(tmp_path, "127.0.0.1", 8000) if each.name.startswith("gpu-worker")]
    assert [each.environment.get("CUDA_VISIBLE_DEVICES") for each in found] == groups
    slots = [next(word for word in each.command if "@%h" in word).split("-")[0] for each in found]
    assert slots == [f"gpu{number}" for number in range(len(groups))]
    assert len({each.name for each in found}) == len(groups)


def test_gpus_that_are_left_over_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: ["NVIDIA L4"] * 5)
    monkeypatch.setenv("TUNERY_GPUS_PER_JOB", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,2,1,0,3")
    monkeypatch.delenv("TUNERY_DEVICE", raising=False)
    assert hardware.unused_gpus_text() == "0, 3 of 5 train no job, because TUNERY_GPUS_PER_JOB is 3"
