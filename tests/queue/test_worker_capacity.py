"""Slots that share a GPU: budgets, shares, and the sentence for a job that fits no slot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.scheduling.worker_capacity import (
    JobRequirements,
    WorkerCapacity,
    fits,
    whole_gpu_reason,
    worker_capacity,
)
from tests.sentences import Reviewed

GB = 10**9
WHOLE = WorkerCapacity("cuda", 24 * GB)
HALF = replace(WHOLE, slots_per_gpu=2, gpu_uuids=("GPU-1",))


@pytest.mark.parametrize(
    ("needed_bytes", "budget_bytes", "share"),
    [
        (5 * GB, 11_760_000_000, 0.5),
        (11_407_200_000, 11_760_000_000, 0.5),
        (11_407_200_001, 24 * GB, 1.0),
        (None, 24 * GB, 1.0),
    ],
)
def test_a_job_has_a_slots_budget_or_the_whole_gpu(needed_bytes: int | None, budget_bytes: int, share: float) -> None:
    assert (HALF.budget_bytes(needed_bytes), HALF.gpu_share(needed_bytes)) == (budget_bytes, share)


@pytest.mark.parametrize(
    "capacity",
    [WHOLE, replace(HALF, slots_per_gpu=1), replace(HALF, gpu_uuids=()), replace(HALF, kind="cpu")],
    ids=["no slots", "one slot", "no UUID", "CPU"],
)
def test_a_job_without_sharing_has_everything(capacity: WorkerCapacity) -> None:
    assert not capacity.shares_gpus
    assert not capacity.needs_whole_gpu(None)
    assert (capacity.budget_bytes(5 * GB), capacity.gpu_share(None)) == (24 * GB, 1.0)


@given(st.integers(1, 200 * GB), st.integers(2, 16))
def test_the_budgets_of_all_slots_fit_the_gpu(memory_bytes: int, slots: int) -> None:
    capacity = WorkerCapacity("cuda", memory_bytes, slots_per_gpu=slots, gpu_uuids=("GPU-1",))
    assert slots * capacity.slot_bytes <= memory_bytes
    reserved = 0
    for _ in range(slots):
        assert capacity.has_room_for_slot(reserved)
        reserved += capacity.slot_bytes


def test_a_job_that_fits_no_slot_has_a_reason(reviewed: Reviewed) -> None:
    large = JobRequirements("m", cuda_bytes=15 * GB)
    assert fits(HALF, large)
    reviewed(str(whole_gpu_reason([HALF], large)))
    reviewed(str(whole_gpu_reason([replace(HALF, gpus=2)], large)))
    assert whole_gpu_reason([HALF, WHOLE], large) is None
    assert whole_gpu_reason([HALF], JobRequirements("m", cuda_bytes=5 * GB)) is None
    assert whole_gpu_reason([HALF], JobRequirements("m", cuda_bytes=50 * GB)) is None


def test_a_worker_describes_its_slots() -> None:
    about = {"kind": "cuda", "device": "L4", "memory_bytes": 24 * GB, "slots_per_gpu": 2, "gpu_uuids": ["GPU-1"]}
    assert worker_capacity(about).slot_bytes == HALF.slot_bytes
    assert not worker_capacity(about | {"slots_per_gpu": 1}).shares_gpus
    assert not worker_capacity({}).shares_gpus  # an earlier release
