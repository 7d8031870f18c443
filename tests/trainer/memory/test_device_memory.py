"""The memory budget of a slot on a fake GPU: the limit of torch and the plan. `make gpu-check` has a real one."""

from __future__ import annotations

import pytest
import torch

from app.domain.jobs.states import Reason
from app.domain.planning.memory import PROCESS_BYTES
from worker.trainer.memory import device_memory
from worker.trainer.runtime.failures import Failure

GB = 10**9
GPU = torch.device("cuda", 0)
CONTEXT = PROCESS_BYTES["cuda"]


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
    device_memory.set_budget(GPU, None)
    assert fractions == [1.0]
    memory = device_memory.measure(GPU)
    assert (memory.capacity_bytes, memory.used_bytes) == (22 * GB + CONTEXT, 1 * GB + CONTEXT)


def test_a_budget_limits_the_allocator_and_replaces_the_free_memory(fractions: list[float]) -> None:
    device_memory.set_budget(GPU, 12 * GB)
    assert fractions[-1] == pytest.approx((12 * GB - CONTEXT) / (24 * GB))
    memory = device_memory.measure(GPU)
    assert memory.capacity_bytes == pytest.approx(12 * GB, abs=1)
    assert memory.free_bytes == pytest.approx(11 * GB - CONTEXT, abs=1)


def test_a_budget_without_space_beside_the_context_is_refused(fractions: list[float]) -> None:
    with pytest.raises(Failure, match="TUNERY_SLOTS_PER_GPU") as caught:
        device_memory.set_budget(GPU, CONTEXT)
    assert caught.value.reason == Reason.OUT_OF_MEMORY
    assert fractions == [1.0]


def test_a_cpu_has_no_budget() -> None:
    before = device_memory.measure(torch.device("cpu")).capacity_bytes
    device_memory.set_budget(torch.device("cpu"), 1)
    assert device_memory.measure(torch.device("cpu")).capacity_bytes == pytest.approx(before, rel=0.2)
