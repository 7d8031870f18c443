from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from tests.trainer.helpers import CPU
from worker.trainer.runtime import device
from worker.trainer.runtime.device import (
    CpuSample,
    choose_compute_dtype,
    choose_device,
    choose_threads,
    float32_request,
    granted_cores,
    linear,
    make_repeatable,
    others_share,
    product,
    product_flops,
    take_sample,
    times_float32,
)
from worker.trainer.runtime.failures import Failure


class TestChooseThreads:
    def test_never_more_than_this_process_may_use(self) -> None:
        assert 1 <= choose_threads() <= len(os.sched_getaffinity(0))

    @pytest.mark.parametrize(("quota", "max_cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 1_000)])
    def test_a_containers_quota_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, max_cores: int
    ) -> None:
        (tmp_path / "cpu.max").write_text(quota)
        monkeypatch.setattr(device, "control_groups", lambda: [tmp_path / "none", tmp_path])
        assert 1 <= choose_threads() <= max_cores
        assert 1 <= granted_cores() <= max_cores


class TestChooseComputeDtype:
    @pytest.mark.parametrize(
        ("quantization", "is_free", "dtype"),
        [
            (QuantizationSpec(compute_dtype="float16"), False, torch.float16),
            (QuantizationSpec(compute_dtype="float32"), False, torch.float32),
            (QuantizationSpec(), True, torch.bfloat16),
            (None, False, torch.bfloat16),
        ],
    )
    def test_a_requested_dtype_or_bfloat16_is_chosen_on_a_cpu(
        self, quantization: QuantizationSpec | None, is_free: bool, dtype: torch.dtype
    ) -> None:
        assert choose_compute_dtype(quantization, CPU, is_free) is dtype

    @pytest.mark.parametrize("quantization", [QuantizationSpec(), None])
    def test_a_gpu_without_bfloat16_computes_in_float16_by_default(
        self, monkeypatch: pytest.MonkeyPatch, quantization: QuantizationSpec | None
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        assert choose_compute_dtype(quantization, torch.device("cuda"), True) is torch.float16


@pytest.mark.parametrize("values", [{}, {"bits": 8}, {"double_quant": False, "compute_dtype": "float16"}])
def test_the_request_for_float32_changes_nothing_else_of_a_quantized_job(values: dict[str, Any]) -> None:
    quantization = QuantizationSpec(**values)
    request = json.loads(float32_request(quantization).removeprefix("quantization "))
    assert QuantizationSpec(**request) == quantization.model_copy(update={"compute_dtype": "float32"})
    assert "4 bits" in float32_request(None)


class TestTimesFloat32:
    @pytest.mark.parametrize(
        ("small", "large", "times", "sizes"), [(30.0, 80.0, 30.0, {128}), (4.2, 4.0, 4.0, {128, 512})]
    )
    def test_a_large_product_is_measured_only_where_a_small_one_is_not_far_slower(
        self, monkeypatch: pytest.MonkeyPatch, small: float, large: float, times: float, sizes: set[int]
    ) -> None:
        """On a processor without AVX-512 the large products took two seconds at the start of each job."""
        measured: set[int] = set()

        def seconds(dtype: torch.dtype, size: int) -> float:
            measured.add(size)
            return 1.0 if dtype == torch.float32 else {128: small, 512: large}[size]

        monkeypatch.setattr(device, "_product_seconds", seconds)
        assert times_float32(torch.bfloat16) == times
        assert measured == sizes


class TestChooseDevice:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize(("requested", "worker_has_gpu"), [("cuda", False), ("cuda", True), ("auto", True)])
    def test_a_gpu_that_has_disappeared_is_no_error_of_the_request(
        self, monkeypatch: pytest.MonkeyPatch, requested: str, worker_has_gpu: bool
    ) -> None:
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        with pytest.raises(Failure, match="no NVIDIA GPU") as caught:
            choose_device(requested, worker_has_gpu)
        assert (caught.value.reason, caught.value.param) == (Reason.DEVICE_LOST, None)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_torch_without_cuda_trains_on_the_cpu_of_a_worker_with_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", None)
        assert choose_device("auto", worker_has_gpu=True).type == "cpu"


class TestMakeRepeatable:
    def test_a_run_on_a_gpu_after_one_on_a_cpu_uses_the_fast_algorithms(self) -> None:
        before = torch.are_deterministic_algorithms_enabled()
        try:
            make_repeatable(torch.device("cpu"), torch.get_num_threads())
            assert torch.are_deterministic_algorithms_enabled()
            make_repeatable(torch.device("cuda", 0), torch.get_num_threads())
            assert not torch.are_deterministic_algorithms_enabled()
        finally:
            torch.use_deterministic_algorithms(before)


def test_the_speed_of_a_product_is_measured() -> None:
    """A core computes between 0.1 GFLOP/s, in emulated arithmetic on a busy machine, and 10 TFLOP/s."""
    assert 1e8 < product_flops(CPU, torch.float32, size=256) < 1e13


@pytest.fixture(params=[True, False])
def is_emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(device, "_is_emulated", lambda _: request.param)
    monkeypatch.setattr(device, "CONVERTED_ROWS", 48)
    return bool(request.param)


@pytest.mark.usefixtures("is_emulated")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_both_ways_round_the_same_sums(dtype: torch.dtype) -> None:
    dice = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=dice).to(dtype) for shape in ((20, 100), (100, 30)))
    bias = torch.randn(30, generator=dice).to(dtype)
    exact = left.double() @ right.double()
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(torch.float32).eps}
    torch.testing.assert_close(product(left, right), exact.to(dtype), **tolerance)
    torch.testing.assert_close(linear(left, right.t(), None), exact.to(dtype), **tolerance)
    with_bias = linear(left, right.t(), bias)
    torch.testing.assert_close(
        with_bias, (exact + bias.double()).to(dtype), rtol=0, atol=8 * torch.finfo(dtype).eps * 10
    )


def test_float32_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_is_emulated", pytest.fail)
    ones = torch.ones(2, 2)
    assert torch.equal(product(ones, ones), 2 * ones)


def test_a_batch_of_rows_keeps_its_shape(is_emulated: bool) -> None:
    x_B_T_K, weight_D_K = torch.ones(2, 3, 100, dtype=torch.bfloat16), torch.ones(30, 100, dtype=torch.bfloat16)
    y_B_T_D = linear(x_B_T_K, weight_D_K, torch.ones(30, dtype=torch.bfloat16))
    assert torch.equal(y_B_T_D, torch.full((2, 3, 30), 101, dtype=torch.bfloat16))
    if is_emulated:
        assert y_B_T_D._base is None  # a view that a Function returns cannot be changed in place


class TestOthersShare:
    @pytest.mark.parametrize(
        ("busy_seconds", "own_seconds", "expected"), [(8, 8, 0), (8, 2, 0.75), (8, 0, 1), (7, 8, 0)]
    )
    def test_the_share_of_others_is_what_other_programs_used_of_the_cores(
        self, busy_seconds: float, own_seconds: float, expected: float
    ) -> None:
        before, after = CpuSample(0.0, 100.0, 10.0), CpuSample(4.0, 100.0 + busy_seconds, 10.0 + own_seconds)
        assert others_share(before, after, cores=2) == expected


class TestTakeSample:
    def test_elapsed_time_and_own_cpu_time_increase(self) -> None:
        before = take_sample()
        deadline = time.process_time() + 0.02
        while time.process_time() < deadline:
            pass
        after = take_sample()

        assert after.at_seconds > before.at_seconds
        assert after.own_seconds >= before.own_seconds + 0.02
        assert after.busy_seconds >= before.busy_seconds
