"""The GPUs that a worker may use."""

from __future__ import annotations

import pytest

from app.domain.planning.estimate import Device
from worker.node import device
from worker.node.device import gpu_problem, unused_gpu_uuids, visible_gpus


@pytest.mark.parametrize(
    ("setting", "visible"),
    [(None, "abc"), ("1", "b"), ("2,0", "ca"), ("b", "b"), ("0,7,1", "a"), ("", ""), ("MIG-1", "abc")],
)
def test_the_gpus_of_a_worker_are_those_that_cuda_visible_devices_names(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, visible: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert "".join(gpu["uuid"] for gpu in visible_gpus([{"uuid": name} for name in "abc"])) == visible


@pytest.mark.parametrize(
    ("present", "gpus_per_job", "text"),
    [
        ("abc", 2, None),
        ("a", 2, "does not list GPU-b any more"),
        ("", 1, "does not list GPU-a any more"),
        ("ab", 3, "sees 2 of the 3 GPUs of a job. Lower TUNERY_GPUS_PER_JOB"),
    ],
)
def test_a_gpu_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, present: str, gpus_per_job: int, text: str | None
) -> None:
    monkeypatch.setattr(device, "training_device", lambda setting: Device("cuda", "NVIDIA L4", 24 << 30))
    monkeypatch.setattr(device, "training_gpu_uuids", lambda gpus, setting: ("GPU-a", "GPU-b")[:gpus])
    monkeypatch.setattr(device, "list_gpus", lambda: [{"uuid": f"GPU-{name}"} for name in present])
    problem = gpu_problem(gpus_per_job)
    assert problem is text if text is None else text in str(problem)


@pytest.mark.parametrize(("gpus_per_job", "unused"), [(1, ["GPU-b", "GPU-c"]), (2, ["GPU-c"]), (3, [])])
def test_the_gpus_beyond_those_of_a_job_are_unused(
    monkeypatch: pytest.MonkeyPatch, gpus_per_job: int, unused: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "list_gpus", lambda: [{"uuid": f"GPU-{name}"} for name in "abc"])
    device.training_gpu_uuids.cache_clear()
    assert unused_gpu_uuids(gpus_per_job) == unused
    device.training_gpu_uuids.cache_clear()


def test_a_worker_without_a_gpu_has_no_problem_of_that_kind() -> None:
    assert gpu_problem(4, "cpu") is None
