"""The memory budget of a slot on a fake GPU: the limit of torch and the plan. `make gpu-check` has a real one."""

from __future__ import annotations

import pytest
import torch

from app.domain.jobs.states import Reason
from worker.trainer.kernels.cpu import memory as cpu_memory
from worker.trainer.kernels.cpu.memory import CpuMemory, DeviceMemory
from worker.trainer.kernels.cuda.memory import CONTEXT_BYTES, CudaMemory
from worker.trainer.runtime.failures import Failure

GB = 10**9
GPU = CudaMemory(torch.device("cuda", 0))


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU of 24 GB of which 20 are free, as other processes use 4; this one holds 2, of which 1 is cached."""
    fractions = [1.0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GB, 24 * GB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GB)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: fractions.append(fraction)
    )
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: fractions[-1])
    return fractions


def test_without_a_budget_the_free_memory_counts(fractions: list[float]) -> None:
    GPU.set_limits(None)
    assert fractions == [1.0]
    memory = GPU.measure()
    assert (memory.capacity_bytes, memory.used_bytes) == (22 * GB + CONTEXT_BYTES, 1 * GB + CONTEXT_BYTES)


def test_a_budget_limits_the_allocator_and_replaces_the_free_memory(fractions: list[float]) -> None:
    GPU.set_limits(12 * GB)
    assert fractions[-1] == pytest.approx((12 * GB - CONTEXT_BYTES) / (24 * GB))
    memory = GPU.measure()
    assert memory.capacity_bytes == pytest.approx(12 * GB, abs=1)
    assert memory.free_bytes == pytest.approx(11 * GB - CONTEXT_BYTES, abs=1)


def test_a_budget_without_space_beside_the_context_is_refused(fractions: list[float]) -> None:
    with pytest.raises(Failure, match="TUNERY_SLOTS_PER_GPU") as caught:
        GPU.set_limits(CONTEXT_BYTES)
    assert caught.value.reason == Reason.OUT_OF_MEMORY
    assert fractions == [1.0]


def test_the_heap_of_the_host_is_limited_with_a_gpu_too(
    fractions: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited: list[int | None] = []
    monkeypatch.setattr(CpuMemory, "set_limits", lambda _, budget_bytes: limited.append(budget_bytes))
    GPU.set_limits(12 * GB)
    assert limited == [None]


def test_a_cpu_has_no_budget() -> None:
    before = CpuMemory().measure().capacity_bytes
    CpuMemory().set_limits(1)
    assert CpuMemory().measure().capacity_bytes == pytest.approx(before, rel=0.2)


@pytest.mark.parametrize(("used_bytes", "is_trimmed"), [(665, False), (666, True)])
def test_the_heap_is_trimmed_before_the_memory_is_full(
    monkeypatch: pytest.MonkeyPatch, used_bytes: int, is_trimmed: bool
) -> None:
    trimmed: list[object] = []
    monkeypatch.setattr(cpu_memory, "_memories", lambda: [DeviceMemory(700, 600), DeviceMemory(9_000, 100)])
    monkeypatch.setattr(CpuMemory, "used_bytes", lambda _: used_bytes)
    monkeypatch.setattr(CpuMemory, "trim", lambda memory: trimmed.append(memory))
    CpuMemory().trim_if_full()
    assert bool(trimmed) == is_trimmed
