from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from app.domain.jobs.spec import QuantizationSpec
from tests.worker.trainer.helpers import CPU
from worker.trainer.runtime import device
from worker.trainer.runtime.device import choose_compute_dtype, choose_device, choose_threads, granted_cores
from worker.trainer.runtime.failures import Failure


class TestChooseThreads:
    def test_never_more_than_this_process_may_use(self) -> None:
        assert 1 <= choose_threads() <= len(os.sched_getaffinity(0))

    @pytest.mark.parametrize(("quota", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 1_000)])
    def test_a_containers_quota_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, most: int
    ) -> None:
        (tmp_path / "cpu.max").write_text(quota)
        monkeypatch.setattr(device, "control_groups", lambda: [tmp_path / "none", tmp_path])
        assert 1 <= choose_threads() <= most
        assert 1 <= granted_cores() <= most


class TestChooseComputeDtype:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_is_what_was_asked_for(self, dtype: str) -> None:
        asked = QuantizationSpec.model_validate({"compute_dtype": dtype})
        assert choose_compute_dtype(asked, CPU) is getattr(torch, dtype)

    def test_is_bfloat16_for_16_bit_lora(self) -> None:
        assert choose_compute_dtype(None, CPU) is torch.bfloat16

    def test_is_bfloat16_on_a_cpu_where_nobody_asked(self) -> None:
        assert choose_compute_dtype(QuantizationSpec(), CPU, True) is torch.bfloat16

    @pytest.mark.parametrize("quantization", [QuantizationSpec(), None])
    def test_is_float16_on_a_gpu_without_bfloat16_where_nobody_asked(
        self, monkeypatch: pytest.MonkeyPatch, quantization: QuantizationSpec | None
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        assert choose_compute_dtype(quantization, torch.device("cuda"), True) is torch.float16


class TestChooseDevice:
    def test_a_cpu_can_be_asked_for_by_name(self) -> None:
        assert choose_device("cpu").type == "cpu"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu(self) -> None:
        assert choose_device("auto").type == "cpu"
        with pytest.raises(Failure, match="no NVIDIA GPU"):
            choose_device("cuda")
