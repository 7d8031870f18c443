"""What is patched has a name, and is undone: PEFT gets transformers' own model."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from tests.trainer.kernels.fused_on_cpu import FUSED_ON_CPU, compile_by
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.model import experts
from worker.trainer.model.attention import attention
from worker.trainer.model.base_model import FrozenBase, load_base, unwrapped
from worker.trainer.model.patches import DOCUMENTS, Patches

LAYER = ("", ".input_layernorm", ".post_attention_layernorm", ".mlp")
MODULES = {f"model.layers.{layer}{part}" for layer in (0, 1) for part in LAYER[1:]} | {"model.norm"}
ROTARY = "transformers.models.llama.modeling_llama.apply_rotary_pos_emb"
FORWARDS = {f"model.layers.{layer}{part}.forward" for layer in (0, 1) for part in LAYER}
PRODUCTS = {f"model.layers.{layer}.mlp.product" for layer in (0, 1)}
PLAIN_ROTARY = modeling_llama.apply_rotary_pos_emb


@pytest.fixture
def base(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> FrozenBase:
    """With everything that can be patched: fused functions, and layers that can be recomputed."""
    compile_by(monkeypatch)
    base = load_base("tiny", tiny, None, torch.float32, FUSED_ON_CPU)
    Recomputation(base)
    return base


def assert_is_transformers_own(base: FrozenBase) -> None:
    kinds = {type(module).__name__ for module in base.model.modules()}
    assert {"LlamaRMSNorm", "LlamaMLP"} <= kinds
    assert not kinds & {"RMSNorm", "CompiledRMSNorm", "GatedMLP"}
    assert not any("forward" in vars(module) for module in base.model.modules())
    assert modeling_llama.apply_rotary_pos_emb is PLAIN_ROTARY


def test_every_patch_of_a_base_has_a_name_and_is_undone(base: FrozenBase) -> None:
    assert set(base.patches.names) == MODULES | FORWARDS | PRODUCTS | {ROTARY}
    base.patches.undo()
    assert base.patches.names == []
    assert_is_transformers_own(base)


def test_peft_gets_the_model_without_patches_and_wrappers(base: FrozenBase) -> None:
    before = {name: type(module) for name, module in base.model.named_modules()}
    with unwrapped(base) as model:
        assert_is_transformers_own(base)
        assert type(model.model.layers[0].mlp.gate_proj).__name__ == "Frozen16"
    assert {name: type(module) for name, module in base.model.named_modules()} == before
    assert modeling_llama.apply_rotary_pos_emb is not PLAIN_ROTARY
    base.patches.undo()


def test_the_functions_for_packed_documents_are_those_of_the_process() -> None:
    assert {f"attention: {attention.NAME}", f"experts: {experts.NAME}"} <= set(DOCUMENTS.names)
    with DOCUMENTS.undone():
        assert attention.NAME not in ALL_ATTENTION_FUNCTIONS
        assert experts.NAME not in ALL_EXPERTS_FUNCTIONS
    assert ALL_ATTENTION_FUNCTIONS[attention.NAME] is attention.document_attention


def test_patches_of_a_block_end_with_it_in_reverse_order() -> None:
    namespace, original = {"one": 1}, socket.getfqdn
    with Patches() as patches:
        for value in (2, 3):
            patches.put("one", namespace, "one", value)
        patches.put("two", namespace, "two", 2)
        patches.put_attribute(socket, "getfqdn", len)
        assert (namespace, socket.getfqdn) == ({"one": 3, "two": 2}, len)
        assert patches.names == ["one", "one", "two", "socket.getfqdn"]
    assert (namespace, socket.getfqdn) == ({"one": 1}, original)
