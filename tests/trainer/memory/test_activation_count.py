"""The bytes that layers of several architectures keep, counted and planned."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.domain.jobs.events import Planned
from app.domain.jobs.spec import LoraSpec
from app.system.model_files import read_catalog_entry, with_report
from tests.trainer.helpers import CPU_KERNELS, make_spec, prepare, run_trainer
from tests.trainer.model.bases import make_base
from worker.trainer.adapter.lora import LoraAdapter, make_adapter
from worker.trainer.memory import placement
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.memory.activation_count import count_activations, count_without_adapter
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.model.check_model import check_model

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
        base = load_base(model_type, tmp_path, None, torch.bfloat16, CPU_KERNELS)
        targets = sorted({name.rpartition(".")[2] for name in base.layers})
        adapter = make_adapter(LoraSpec(r=RANK, alpha=8, target_modules=targets), 0, base.layers, CPU_KERNELS)
        return base, adapter, Recomputation(base)

    return make


class TestCountActivations:
    @pytest.mark.parametrize(
        ("model_type", "ratio"),
        [("llama", 1.0), ("phi3", 1.2), ("gemma3_text", 1.75)],
    )
    def test_the_count_is_what_the_architecture_keeps_beside_a_llama_layer(
        self, load: Callable[..., Any], model_type: str, ratio: float
    ) -> None:
        base, adapter, recomputation = load(model_type)
        counts = count_activations(base, adapter, recomputation)
        adapter_bytes = 2 * RANK * len({name.rpartition(".")[2] for name in base.layers})
        counted = (counts["nothing"] + ATTENTION_BYTES) / (LLAMA_BYTES + ATTENTION_BYTES + adapter_bytes)
        assert counted == pytest.approx(ratio, rel=0.03)
        assert counts["elementwise"] < counts["nothing"]
        plain = count_without_adapter(base, recomputation)
        assert plain == {mode: pytest.approx(count - adapter_bytes) for mode, count in counts.items()}

    def test_a_count_changes_nothing(self, load: Callable[..., Any]) -> None:
        base, adapter, recomputation = load("gemma3_text")
        adapter.dropout = 0.5
        state = adapter.generator.get_state()
        once, twice = (count_activations(base, adapter, recomputation) for _ in range(2))
        assert once == twice
        assert torch.equal(adapter.generator.get_state(), state)
        assert recomputation.mode == "nothing"
        assert all(parameter.grad is None for parameter in adapter.parameters())

    @pytest.mark.parametrize("name", ["Qwen3.5 text", "Qwen3-Next"])
    def test_counts_what_the_gated_delta_rule_keeps(self, tmp_path: Path, name: str) -> None:
        """Against the bytes that autograd saves for documents of several chunks of 64 tokens."""
        base = load_base("tiny", make_base(name, tmp_path / "base"), None, torch.bfloat16, CPU_KERNELS)
        counted = count_without_adapter(base, Recomputation(base))["nothing"]
        short, long = (delta_rule_bytes(base, tokens) for tokens in (128, 256))
        of_delta_rule = (long - short) / 128
        assert of_delta_rule > 1000
        assert counted * base.text_config.num_hidden_layers > of_delta_rule

    def test_counts_layers_that_cannot_be_recomputed(self, tmp_path: Path) -> None:
        base = load_base("tiny", make_base("Gemma 4 text", tmp_path / "base"), None, torch.bfloat16, CPU_KERNELS)
        counts = count_without_adapter(base, Recomputation(base))
        assert counts.keys() == {"nothing"}
        assert counts["nothing"] > LLAMA_BYTES / HIDDEN * base.text_config.hidden_size * 0.5


def delta_rule_bytes(base: FrozenBase, tokens: int) -> int:
    """Return the bytes that the gated delta rule of the base's one linear-attention layer keeps for a document."""
    layer, seen = base.decoder.layers[0].linear_attn, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    rule = sys.modules[type(layer).__module__].torch_chunk_gated_delta_rule  # type: ignore[attr-defined]
    heads, size = layer.num_v_heads, layer.head_k_dim
    inputs = [torch.randn(1, tokens, heads, size, requires_grad=True) for _ in range(3)]
    g, beta = (-torch.rand(1, tokens, heads, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = rule(*inputs, g=g, beta=beta)
    del result
    return sum(seen.values())


class TestPlan:
    @pytest.mark.parametrize(
        "options", [{}, {"dropout": 0.1}, {"modules_to_save": ["norm"]}, {"use_dora": True}], ids=str
    )
    def test_counts_what_the_catalog_entry_lacks(
        self, tiny: Path, examples: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        spec = make_spec(tiny, examples, quantization=None, **options)
        base = load_base("tiny", tiny, None, torch.bfloat16, CPU_KERNELS)
        run = prepare(spec, base, tmp_path)
        counted = placement.count_missing(spec, base, run, Recomputation(base))
        formula, by_count = placement.place(spec, base, run), placement.place(spec, base, run, None, counted)
        assert by_count.formula.activations == pytest.approx(formula.formula.activations, rel=0.03)  # a Llama
        assert bool(placement.planned(run, by_count, counted).activation_bytes) == (not options)

    def test_uses_the_entry_that_has_them(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        spec = make_spec(tiny, examples, quantization=None)
        base = load_base("tiny", tiny, None, torch.bfloat16, CPU_KERNELS)
        run = prepare(spec, base, tmp_path)
        entry = with_report(read_catalog_entry(tiny), check_model(tiny))
        recomputation = Recomputation(base)
        assert entry.activation_bytes == pytest.approx(placement.count_missing(spec, base, run, recomputation))
        twice = {mode: 2 * count for mode, count in entry.activation_bytes.items()}
        plans = []
        for counts in (entry.activation_bytes, twice):
            changed = entry.model_copy(update={"activation_bytes": counts})
            registered = spec.model_copy(update={"base": spec.base.model_copy(update={"entry": changed})})
            assert placement.count_missing(registered, base, run, recomputation) == {}
            plans.append(placement.place(registered, base, run).formula.activations)
        assert plans[1] > 1.3 * plans[0]

    def test_a_job_reports_what_it_counted(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        code, log = run_trainer(make_spec(tiny, examples), tmp_path / "work")
        assert code == 0
        (record,) = log.of(Planned)
        assert record.activation_bytes == pytest.approx(check_model(tiny).activation_bytes)
