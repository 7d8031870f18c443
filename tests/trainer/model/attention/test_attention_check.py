"""Planted faults in attention kernels: each must be refused before a job trains, with the name of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.states import ExitCode, Reason
from tests.trainer.helpers import make_spec, run_trainer
from worker.trainer.model.attention import attention
from worker.trainer.model.attention.attention import Heads, document_attention
from worker.trainer.model.attention.attention_check import AttentionCall, check_attention
from worker.trainer.runtime.failures import Failure

Compute = Callable[[Heads], torch.Tensor]
KERNELS = {"_block_kernel": "blocks of documents", "_document_by_document": "one document at a time"}


def leaking(kernel: Compute) -> Compute:
    """Every token sees the documents before its own."""
    return lambda heads: kernel(replace(heads, lengths=(sum(heads.lengths),)))


def with_doubled_scale(kernel: Compute) -> Compute:
    return lambda heads: kernel(replace(heads, scaling=2 * (heads.scaling or heads.query_1_H_T_D.shape[-1] ** -0.5)))


def with_one_token_more_in_the_window(kernel: Compute) -> Compute:
    return lambda heads: kernel(heads if heads.window is None else replace(heads, window=heads.window + 1))


class LeakingGradient(torch.autograd.Function):
    """The identity, whose gradient contains a tenth of that of the token before."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient + 0.1 * gradient.roll(1, dims=2)


def with_leaking_gradient(kernel: Compute) -> Compute:
    return lambda heads: kernel(replace(heads, value_1_G_T_E=LeakingGradient.apply(heads.value_1_G_T_E)))  # type: ignore[no-untyped-call]


def a_call(window: int | None = None, dtype: torch.dtype = torch.bfloat16, value_size: int = 16) -> AttentionCall:
    options = {"scaling": 0.25, "sliding_window": window, "dropout": 0.0}
    return AttentionCall(
        document_attention, torch.nn.Module(), options, 4, 2, 16, value_size, torch.device("cpu"), dtype
    )


class TestCheckAttention:
    @pytest.mark.parametrize(
        "call",
        [
            *((window, torch.bfloat16) for window in (None, 3, 512)),
            (None, torch.float16), (3, torch.float32), (3, torch.bfloat16, 8),
        ],
    )  # fmt: skip
    def test_the_kernels_pass(self, call: tuple[Any, ...]) -> None:
        check_attention("tiny", [a_call(*call)])

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize(
        ("fault", "seen"),
        [
            (leaking, "mixes the documents"),
            (with_doubled_scale, "softmax in float32"),
            (with_leaking_gradient, "mixes the documents"),
        ],
    )
    def test_a_fault_is_refused_with_the_name_of_the_kernel(
        self, monkeypatch: pytest.MonkeyPatch, kernel: str, fault: Callable[[Compute], Compute], seen: str
    ) -> None:
        monkeypatch.setattr(attention, kernel, fault(getattr(attention, kernel)))
        with pytest.raises(Failure, match=seen) as caught:
            check_attention("tiny", [a_call()])
        assert KERNELS[kernel] in caught.value.message
        assert "4 query" in caught.value.message
        assert caught.value.reason is Reason.MODEL_UNAVAILABLE

    def test_a_window_that_is_one_token_too_wide_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wide = with_one_token_more_in_the_window(attention._document_by_document)
        monkeypatch.setattr(attention, "_document_by_document", wide)
        with pytest.raises(Failure, match="softmax in float32"):
            check_attention("tiny", [a_call(window=4096)])

    def test_a_kernel_whose_result_is_not_finite_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = attention._block_kernel
        monkeypatch.setattr(attention, "_block_kernel", lambda heads: kernel(heads) * torch.nan)
        with pytest.raises(Failure, match="blocks of documents"):
            check_attention("tiny", [a_call()])


def test_a_job_does_not_train_with_a_faulty_kernel(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_block_kernel", with_doubled_scale(attention._block_kernel))
    code, log = run_trainer(make_spec(tiny, examples, quantization={"compute_dtype": "bfloat16"}), tmp_path)
    assert code == ExitCode.BAD_SPEC
    assert "blocks of documents" in log.failure.message
