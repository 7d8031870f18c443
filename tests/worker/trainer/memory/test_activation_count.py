"""The bytes that layers of several architectures keep, counted and planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.domain.jobs.spec import LoraSpec
from tests.worker.trainer.helpers import CPU, make_spec, prepare, run_trainer
from worker.trainer.adapter.lora import LoraAdapter, make_adapter
from worker.trainer.memory import placement
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.memory.activation_count import count_activations, has_llama_layers
from worker.trainer.model.base_model import FrozenBase, load_base

HIDDEN, INNER, HEADS, GROUPS, HEAD_SIZE, RANK = 64, 192, 4, 2, 16, 4
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ATTENTION_BYTES = 2 * HEAD_SIZE * (2 * HEADS + 2 * GROUPS)
LLAMA_BYTES = 2 * (4 * HIDDEN + 3 * INNER)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], tuple[FrozenBase, LoraAdapter, Recomputation]]:
    def make(model_type: str) -> tuple[FrozenBase, LoraAdapter, Recomputation]:
        head = {} if model_type in ("llama", "qwen2", "phi3", "olmo2") else {"head_dim": HEAD_SIZE}
        config = AutoConfig.for_model(model_type, **SIZES, **head)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
        base = load_base(model_type, tmp_path, None, torch.bfloat16, CPU)
        targets = sorted({name.rpartition(".")[2] for name in base.layers})
        adapter = make_adapter(LoraSpec(r=RANK, alpha=8, target_modules=targets), 0, base.layers, CPU)
        return base, adapter, Recomputation(base.model, base.switch)

    return make


class TestCountActivations:
    @pytest.mark.parametrize(
        ("model_type", "ratio"),
        [("llama", 1.0), ("mistral", 1.0), ("qwen3", 1.1), ("phi3", 1.2), ("glm4", 1.33), ("gemma3_text", 1.75)],
    )
    def test_is_what_the_architecture_keeps_beside_a_llama_layer(
        self, load: Callable[..., Any], model_type: str, ratio: float
    ) -> None:
        base, adapter, recomputation = load(model_type)
        counts = count_activations(base, adapter, recomputation)
        adapter_bytes = 2 * RANK * len({name.rpartition(".")[2] for name in base.layers})
        counted = (counts["nothing"] + ATTENTION_BYTES) / (LLAMA_BYTES + ATTENTION_BYTES + adapter_bytes)
        assert counted == pytest.approx(ratio, rel=0.03)
        assert counts["elementwise"] < counts["nothing"]
        assert has_llama_layers(recomputation) == (ratio == 1.0)

    def test_it_changes_nothing(self, load: Callable[..., Any]) -> None:
        base, adapter, recomputation = load("gemma3_text")
        adapter.dropout = 0.5
        state = adapter.generator.get_state()
        once, twice = (count_activations(base, adapter, recomputation) for _ in range(2))
        assert once == twice
        assert torch.equal(adapter.generator.get_state(), state)
        assert recomputation.mode == "nothing"
        assert all(parameter.grad is None for parameter in adapter.parameters())


class TestPlan:
    def test_uses_the_count_where_the_formula_does_not_describe_the_layers(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(placement, "has_llama_layers", lambda recomputation: False)
        spec = make_spec(tiny, examples, dropout=0.1, quantization=None)
        base = load_base("tiny", tiny, None, torch.bfloat16, CPU)
        run = prepare(spec, base, tmp_path)
        recomputation = Recomputation(base.model, base.switch)
        formula, counted = placement.place(spec, base, run), placement.place(spec, base, run, None, recomputation)
        assert counted.formula.activations == pytest.approx(formula.formula.activations, rel=0.02)  # a Llama
        twice = {"nothing": 4 * LLAMA_BYTES, "elementwise": 4 * LLAMA_BYTES}
        monkeypatch.setattr(placement, "count_activations", lambda *_: twice)
        assert placement.place(spec, base, run, None, recomputation).formula.activations > counted.formula.activations

    def test_a_job_trains_with_it(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, plain = run_trainer(make_spec(tiny, examples, dropout=0.1), tmp_path / "plain")
        monkeypatch.setattr(placement, "has_llama_layers", lambda recomputation: False)
        code, counted = run_trainer(make_spec(tiny, examples, dropout=0.1), tmp_path / "counted")
        assert code == 0
        assert counted.losses == plain.losses
