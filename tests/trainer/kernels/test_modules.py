from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.tiny import make_tiny_base
from tests.trainer.helpers import CPU_KERNELS
from worker.trainer.kernels.replacement import MEMORY_EFFICIENT, replace_functions
from worker.trainer.model.base_model import load_base
from worker.trainer.model.patches import Patches


def llama_norm(width: int, dtype: torch.dtype) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(width, 1e-5).to(dtype).requires_grad_(False)
    norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    return norm


class TestReplaceFunctions:
    def test_every_norm_and_gated_mlp_of_a_llama_is_replaced(self, tmp_path: Path) -> None:
        base = load_base("tiny", make_tiny_base(tmp_path / "base"), None, torch.bfloat16, CPU_KERNELS)
        kinds = [type(module).__name__ for module in base.model.modules()]
        assert (kinds.count("RMSNorm"), kinds.count("GatedMLP")) == (5, 2)
        assert not {"LlamaRMSNorm", "LlamaMLP"} & set(kinds)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_a_wide_norm_is_replaced_though_some_values_round_to_the_next_number(self, dtype: torch.dtype) -> None:
        model = torch.nn.Sequential(llama_norm(5_120, dtype), GptOssRMSNorm(5_120).to(dtype).requires_grad_(False))
        assert replace_functions(model, dtype, MEMORY_EFFICIENT, Patches(), lambda _: None) == {"norms": 2}

    def test_a_norm_with_another_formula_stays(self) -> None:
        gemma = GemmaRMSNorm(16).requires_grad_(False)  # multiplies by 1 + weight
        gemma.weight.data.fill_(0.25)
        model = torch.nn.Sequential(gemma, llama_norm(16, torch.float32))
        before = copy.deepcopy(model)
        replace_functions(model, torch.float32, MEMORY_EFFICIENT, Patches(), lambda _: None)
        assert [type(module).__name__ for module in model] == ["GemmaRMSNorm", "RMSNorm"]
        x = torch.randn(3, 16)
        torch.testing.assert_close(model(x), before(x))
