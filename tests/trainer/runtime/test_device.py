from __future__ import annotations

import pytest
import torch

from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from app.system.host import usable_cores
from tests.trainer.helpers import CPU
from worker.trainer.runtime import device
from worker.trainer.runtime.device import (
    choose_compute_dtype,
    choose_device,
    choose_threads,
    make_repeatable,
)
from worker.trainer.runtime.failures import Failure


def test_never_more_threads_than_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= choose_threads() <= usable_cores()
    monkeypatch.setattr(device, "usable_cores", lambda: 1)
    assert choose_threads() == 1


class TestChooseComputeDtype:
    @pytest.mark.parametrize(
        ("quantization", "is_free", "multiplies_bfloat16", "dtype"),
        [
            (QuantizationSpec(compute_dtype="float16"), False, True, torch.float16),
            (QuantizationSpec(compute_dtype="float32"), False, True, torch.float32),
            (QuantizationSpec(), False, False, torch.bfloat16),
            (QuantizationSpec(), True, True, torch.bfloat16),
            (QuantizationSpec(), True, False, torch.float32),
            (None, False, True, torch.bfloat16),
            (None, False, False, torch.float32),
        ],
    )
    def test_a_cpu_computes_as_requested_or_in_what_it_has_instructions_for(
        self,
        monkeypatch: pytest.MonkeyPatch,
        quantization: QuantizationSpec | None,
        is_free: bool,
        multiplies_bfloat16: bool,
        dtype: torch.dtype,
    ) -> None:
        monkeypatch.setattr(device, "multiplies_fast", lambda dtype: multiplies_bfloat16 or dtype != "bfloat16")
        assert choose_compute_dtype(quantization, CPU, is_free) is dtype

    @pytest.mark.parametrize("quantization", [QuantizationSpec(), None])
    def test_a_gpu_without_bfloat16_computes_in_float16_by_default(
        self, monkeypatch: pytest.MonkeyPatch, quantization: QuantizationSpec | None
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        assert choose_compute_dtype(quantization, torch.device("cuda"), True) is torch.float16


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
