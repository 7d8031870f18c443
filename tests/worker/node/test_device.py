"""The GPUs that a worker may use."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from app.domain.planning.duration import gpu_peak_flops
from app.domain.planning.estimate import Device
from worker.node import device
from worker.node.device import GpuMetrics, gpu_problem, unused_gpu_uuids, visible_gpus

OUTPUT = """\
GPU-1a, NVIDIA H100 80GB HBM3, 37, 20480, 81559, 41, 312.50
GPU-2b, NVIDIA H100 80GB HBM3, 0, 4, 81559, 33, [N/A]
"""
NVIDIA_SMI = """\
#!/bin/sh
case "$1" in
--query-gpu=*) cat <<END
GPU-a, NVIDIA A100-SXM4-80GB, 81920, Enabled
GPU-b, NVIDIA A100-SXM4-80GB, 81920, Disabled
GPU-c, NVIDIA L4, 23034, [N/A]
END
;;
-L) cat <<END
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-a)
  MIG 3g.40gb     Device  0: (UUID: MIG-1)
  MIG 1g.10gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-b)
GPU 2: NVIDIA L4 (UUID: GPU-c)
END
;;
-q) cat <<END
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <gpu id="00000000:07:00.0">
    <mig_devices>
      <mig_device><index>0</index><fb_memory_usage><total>40448 MiB</total></fb_memory_usage></mig_device>
      <mig_device><index>1</index><fb_memory_usage><total>9728 MiB</total></fb_memory_usage></mig_device>
    </mig_devices>
    <uuid>GPU-a</uuid>
    <fb_memory_usage><total>81920 MiB</total></fb_memory_usage>
  </gpu>
  <gpu id="00000000:0F:00.0"><mig_devices>None</mig_devices><uuid>GPU-b</uuid></gpu>
</nvidia_smi_log>
END
esac
"""


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
    ("setting", "uuid", "name", "memory_mib"),
    [
        ("MIG-2", "MIG-2", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728),
        (None, "MIG-1", "NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40448),
        ("GPU-a", "MIG-1", "NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40448),
        ("1", "GPU-b", "NVIDIA A100-SXM4-80GB", 81920),
    ],
)
def test_a_worker_offers_the_memory_of_its_mig_slice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None, uuid: str, name: str, memory_mib: int
) -> None:
    """The program writes what nvidia-smi does, cut down to what is read."""
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert device.training_device.__wrapped__() == Device("cuda", name, memory_mib << 20)
    assert device.training_gpu_uuids.__wrapped__(1) == (uuid,)
    assert gpu_peak_flops(name) is None or "MIG" not in name


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


@pytest.mark.parametrize(("visible", "uuids"), [(None, {"GPU-1a", "GPU-2b"}), ("1", {"GPU-2b"})])
def test_a_scrape_returns_the_last_measurement_of_the_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, uuids: set[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu_metrics = GpuMetrics((sys.executable, "-c", f"print({OUTPUT!r}, end='')"))
    gpu_metrics.join()
    seen = {
        (each.name, sample.labels["uuid"]): sample.value for each in gpu_metrics.collect() for sample in each.samples
    }
    assert {uuid for _, uuid in seen} == uuids
    assert math.isnan(seen["tunery_gpu_power_watts", "GPU-2b"])
    if visible is None:
        assert seen["tunery_gpu_utilization_ratio", "GPU-1a"] == pytest.approx(0.37)
        assert seen["tunery_gpu_memory_used_bytes", "GPU-1a"] == 20480 << 20
        assert seen["tunery_gpu_memory_bytes", "GPU-1a"] == 81559 << 20


def test_without_nvidia_smi_there_are_no_values() -> None:
    gpu_metrics = GpuMetrics(("/nowhere/nvidia-smi",))
    gpu_metrics.join()
    assert list(gpu_metrics.collect()) == []
