"""Layers of experts: equal to transformers' eager loop, with PEFT's update of the stacked weights in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import GptOssConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from app.domain.jobs.spec import LoraSpec, QuantizationSpec
from tests.trainer.helpers import CPU_KERNELS
from worker.trainer.adapter.lora import AdapterSwitch, LoraAdapter, LoraWeights, make_adapter
from worker.trainer.model import experts
from worker.trainer.model.frozen_experts import freeze_stack
from worker.trainer.model.frozen_linear import freeze

TOKENS, HIDDEN, INNER = 40, 64, 32
SCALE = 2.0
FORMATS = {
    "float32": None,
    "nf4": QuantizationSpec(compute_dtype="float32"),
    "fp4": QuantizationSpec(type="fp4", double_quant=False, compute_dtype="float32"),
    "8 bits": QuantizationSpec(bits=8, compute_dtype="float32"),
}


@dataclass
class Case:
    count: int = 8
    chosen: int = 2
    rank: int = 3  # its rows of A x are no whole units of 16 bytes
    weights: str = "float32"
    used: tuple[int, ...] = ()  # the experts that the router chooses; all if empty
    kind: str = "qwen3"
    sizes: tuple[int, int] = (HIDDEN, INNER)
    tokens: int = TOKENS
    at_once: int | None = None  # weights of experts that are dequantized at once


CASES = {
    "frozen": Case(rank=0),
    "three experts": Case(count=3),
    "five experts, one a token": Case(count=5, chosen=1),
    "experts without a token": Case(used=(1, 2, 6)),
    "one expert has all tokens": Case(chosen=1, used=(4,)),
    "a single token": Case(tokens=1, rank=0, weights="nf4"),
    "transposed, with biases": Case(kind="gpt-oss", weights="nf4"),
    "nf4": Case(weights="nf4"),
    "fp4": Case(weights="fp4"),
    "8 bits": Case(weights="8 bits"),
    "nf4, two experts at once": Case(weights="nf4", at_once=2 * HIDDEN * 2 * INNER),
    "8 bits, one expert at once": Case(weights="8 bits", at_once=1, used=(0, 3, 7)),
    "rows that are not aligned": Case(sizes=(37, 9), weights="nf4"),
    "rows that are not aligned, frozen": Case(sizes=(37, 9), rank=0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradients_are_those_of_transformers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if case.at_once is not None:
        monkeypatch.setattr(experts, "EXPERT_WEIGHTS", {"cpu": case.at_once})
    plain, frozen, adapter = _layers(case)
    expected = _run(plain, case)
    names = _names(plain)
    if adapter is not None:
        for name in names:
            expected |= _gradients_of_factors(plain, name, adapter.layers[name])
    found = _run(frozen, case)
    if adapter is not None:
        found |= {
            f"{name}.{part}": gradient.grad
            for name in names
            for part, gradient in (("A", adapter.layers[name].A_R_K), ("B", adapter.layers[name].B_D_R))
        }
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max()), msg=name)


def test_a_gpu_computes_a_layer_without_a_read_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta` a read fails, as it has no values, and a grouped product has the conditions of CUDA's."""
    monkeypatch.setitem(experts.EXPERT_WEIGHTS, "meta", 1 << 29)
    module, meta, rank = _module(Case()), torch.device("meta"), 16
    module.config._experts_implementation = experts.NAME
    adapter = LoraAdapter(0.0, torch.Generator(), {}, CPU_KERNELS)
    switch = AdapterSwitch()
    for name in _names(module):
        weights = module._parameters[name].to(meta)
        count, D, K = weights.shape
        experts.freeze_experts(module, name, name, weights, switch, None, torch.bfloat16)
        shapes = (rank * count, K), (D, rank * count)
        A, B = (torch.nn.Parameter(torch.empty(shape, device=meta)) for shape in shapes)
        adapter.layers[name] = LoraWeights(A, B, SCALE)
    hidden_T_K = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16, device=meta, requires_grad=True)
    weights_T_C, experts_T_C = torch.empty(TOKENS, 2, device=meta), torch.empty(TOKENS, 2, device=meta).long()
    with switch.on(adapter):
        out_T_K = module(hidden_T_K, experts_T_C, weights_T_C)
    out_T_K.sum().backward()
    assert all(parameter.grad is not None for parameter in [hidden_T_K, *adapter.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_grouped_product_is_that_of_each_expert(dtype: torch.dtype) -> None:
    left, right = torch.randn(12, 8, dtype=dtype), torch.randn(3, 16, 8, dtype=dtype)
    ends = torch.tensor([5, 5, 12], dtype=torch.int32)
    rows = (slice(0, 5), slice(5, 5), slice(5, 12))
    products = torch.cat([left[part].float() @ right[each].float().t() for each, part in enumerate(rows)])
    found = experts.grouped_product(left, right.transpose(1, 2), ends)
    torch.testing.assert_close(found.float(), products, rtol=2e-2, atol=2e-2)
    sums = torch.stack([left[part].float().t() @ found[part].float() for part in rows])
    torch.testing.assert_close(experts._sums_of_products(left, found, ends), sums, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("sizes", [(5, 64, 64), (3, 128, 192), (2, 24, 20), (3, 37, 9)])
@pytest.mark.parametrize("weights", FORMATS)
def test_a_stack_has_the_weights_of_its_experts(weights: str, sizes: tuple[int, int, int]) -> None:
    """To the bit those of experts that are quantized and dequantized one by one, also for some of them."""
    weights_E_D_K = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).bfloat16()
    stack = freeze_stack(weights_E_D_K, FORMATS[weights], torch.float32)
    layers = [freeze(weight_D_K, FORMATS[weights], torch.float32) for weight_D_K in weights_E_D_K]
    single = torch.stack([layer.weight_in(torch.float32) for layer in layers])
    assert torch.equal(stack.weights_in(torch.float32), single)
    assert torch.equal(stack.weights_in(torch.float32, torch.tensor([0, sizes[0] - 1])), single[[0, -1]])
    assert torch.equal(stack.weights_in(torch.bfloat16, slice(1, 2)), single[1:2].bfloat16())


def _layers(case: Case) -> tuple[Any, Any, LoraAdapter | None]:
    """Return transformers' layer with the dequantized weights and PEFT's update, ours, and the adapter of ours."""
    plain, frozen, switch = _module(case), _module(case), AdapterSwitch()
    frozen.config._experts_implementation = experts.NAME
    stacks = {
        name: experts.freeze_experts(
            frozen, name, name, frozen._parameters[name].data, switch, FORMATS[case.weights], torch.float32
        )
        for name in _names(plain)
    }
    adapter = None
    if case.rank:
        lora = LoraSpec(r=case.rank, alpha=SCALE * case.rank, target_modules=(), experts=True)
        adapter = switch.active = make_adapter(lora, 0, {}, CPU_KERNELS, stacks)
    for name, weights in stacks.items():
        stacked = weights.weights_in(torch.float32)
        if adapter is not None:
            torch.nn.init.normal_(adapter.layers[name].B_D_R, 0, 0.1)
            stacked = stacked + SCALE * _product_of_factors(adapter.layers[name], weights.count)
        parameter = stacked.transpose(1, 2) if plain.is_transposed else stacked
        plain._parameters[name] = torch.nn.Parameter(parameter.detach().contiguous())
    return plain, frozen, adapter


def _module(case: Case) -> Any:
    hidden, inner = case.sizes
    sizes = {"hidden_size": hidden, "num_experts_per_tok": case.chosen}
    torch.manual_seed(0)
    module: Any
    if case.kind == "gpt-oss":
        module = GptOssExperts(GptOssConfig(intermediate_size=inner, num_local_experts=case.count, **sizes))
    else:
        module = Qwen3MoeExperts(Qwen3MoeConfig(moe_intermediate_size=inner, num_experts=case.count, **sizes))
    module.config._experts_implementation = "eager"
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
        parameter.requires_grad_(False)
    return module


def _names(module: Any) -> list[str]:
    return [name for name, _ in module.named_parameters() if not name.endswith("bias")]


def _product_of_factors(weights: Any, count: int) -> torch.Tensor:
    """Return B A of each expert (E x D x K), as peft.tuners.lora.layer.ParamWrapper computes it."""
    A_E_R_K = weights.A_R_K.reshape(count, -1, weights.A_R_K.shape[1])
    B_D_R_E = weights.B_D_R.reshape(weights.B_D_R.shape[0], -1, count)
    return torch.einsum("dre,erk->edk", B_D_R_E, A_E_R_K)


def _run(module: Any, case: Case) -> dict[str, torch.Tensor]:
    """Return the output, and the gradients of the hidden states and of the router's weights."""
    generator = torch.Generator().manual_seed(1)
    hidden_T_K = torch.randn(case.tokens, case.sizes[0], generator=generator).requires_grad_()
    scores_T_E = torch.rand(case.tokens, case.count, generator=generator)
    if case.used:
        scores_T_E[:, [each for each in range(case.count) if each not in case.used]] = -1
    weights_T_C, experts_T_C = scores_T_E.topk(case.chosen)
    weights_T_C = weights_T_C.detach().requires_grad_()
    out_T_K = module(hidden_T_K, experts_T_C, weights_T_C)
    (out_T_K * torch.randn(out_T_K.shape, generator=generator)).sum().backward()
    assert hidden_T_K.grad is not None
    assert weights_T_C.grad is not None
    return {"out": out_T_K.detach(), "hidden": hidden_T_K.grad, "weights": weights_T_C.grad}


def _gradients_of_factors(plain: Any, name: str, weights: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of A and B by that of the stacked weight."""
    gradient = plain._parameters[name].grad
    gradient = gradient.transpose(1, 2) if plain.is_transposed else gradient
    factors = weights.A_R_K, weights.B_D_R
    A, B = torch.autograd.grad(SCALE * _product_of_factors(weights, len(gradient)), factors, gradient)
    return {f"{name}.A": A, f"{name}.B": B}
