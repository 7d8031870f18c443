"""Tests that need an NVIDIA GPU; skipped if there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Command, Started
from app.domain.jobs.spec import QuantizationSpec
from tests.gpu_check.checks import fall_problem
from tests.worker.trainer.helpers import final_adapter, make_spec, run_trainer
from tests.worker.trainer.model.attention.test_attention import by_hand, heads
from worker.trainer.model.attention.attention import document_attention
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import load_base

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


class TestOnCuda:
    @pytest.mark.parametrize("window", [None, 3])
    def test_the_variable_length_kernel_equals_a_masked_softmax(self, window: int | None) -> None:
        query, key, value = (
            torch.nn.functional.pad(tensor, (0, 56)).cuda().bfloat16() for tensor in heads(9)
        )  # the kernel wants heads of 64
        out, _ = document_attention(
            torch.nn.Module(), query, key, value, None,
            document_lengths=(4, 5), scaling=8**-0.5, sliding_window=window,
        )  # fmt: skip
        want = by_hand(*heads(9), [4, 5], window)
        torch.testing.assert_close(out[..., :8].float().cpu(), want, rtol=0.02, atol=0.02)

    @pytest.mark.parametrize("quantization", [QuantizationSpec(), None])
    def test_the_base_passes_its_check(self, tiny: Path, quantization: QuantizationSpec | None) -> None:
        check_base(load_base("tiny", tiny, quantization, torch.bfloat16, torch.device("cuda", 0)))

    @pytest.mark.parametrize("quantization", [{}, {"compute_dtype": "float32"}, {"compute_dtype": "float16"}, None])
    def test_a_run_trains_verifies_and_its_loss_falls_as_on_a_cpu(
        self, tiny: Path, examples: Path, tmp_path: Path, quantization: dict[str, str] | None
    ) -> None:
        changes = {"quantization": quantization, "learning_rate": 1e-2, "dropout": 0.0}
        code, log = run_trainer(make_spec(tiny, examples, device="cuda", **changes), tmp_path / "cuda")
        assert code == 0, log.last
        assert log.of(Started)[0].device.startswith("cuda")
        _, on_cpu = run_trainer(make_spec(tiny, examples, device="cpu", **changes), tmp_path / "cpu")
        assert fall_problem(log.losses, on_cpu.losses) == ""

    def test_the_loss_of_pairs_falls_as_on_a_cpu(self, tiny: Path, pairs: Path, tmp_path: Path) -> None:
        changes = {"method": "dpo", "beta": 0.5, "learning_rate": 1e-3, "quantization": {"compute_dtype": "float32"}}
        code, log = run_trainer(make_spec(tiny, pairs, device="cuda", **changes), tmp_path / "cuda")
        assert code == 0, log.last
        _, on_cpu = run_trainer(make_spec(tiny, pairs, device="cpu", **changes), tmp_path / "cpu")
        assert fall_problem(log.losses, on_cpu.losses) == ""

    @pytest.mark.parametrize(
        "changes",
        [
            {"use_dora": True, "dropout": 0.1},
            {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
            {"use_dora": True, "modules_to_save": ["lm_head"], "quantization": {"bits": 8}},
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "quantization": {"bits": 8}},
            {"use_dora": True, "quantization": None},
        ],
    )
    def test_a_variant_trains_and_verifies(
        self, tiny: Path, examples: Path, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        code, log = run_trainer(make_spec(tiny, examples, device="cuda", sample_prompts=["red"], **changes), tmp_path)
        assert code == 0, log.last

    def test_a_run_with_dropout_resumes_from_its_snapshot(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        changes = {"device": "cuda", "dropout": 0.2, "quantization": {"compute_dtype": "float32"}}
        _, uninterrupted = run_trainer(make_spec(tiny, examples, **changes), tmp_path / "whole")
        _, first = run_trainer(make_spec(tiny, examples, **changes), tmp_path / "first", stop_at=(3, Command.DRAIN))
        snapshot = tmp_path / "first" / first.records[-2].directory
        code, second = run_trainer(make_spec(tiny, examples, resume_from=snapshot, **changes), tmp_path / "second")
        assert code == 0
        one, other = final_adapter(uninterrupted, tmp_path / "whole"), final_adapter(second, tmp_path / "second")
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
