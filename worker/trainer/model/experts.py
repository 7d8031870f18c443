"""Mixture-of-experts layers: frozen experts, each a frozen linear layer, and LoRA on them where the request names them.

transformers 5 has one parameter for the experts of a layer (experts x out x in). Here each expert is a frozen linear
layer of its own (NF4, 8 or 16 bits), so only the experts that a batch uses are dequantized, one at a time. LoRA on
experts has PEFT's form (`target_parameters`): for E experts A is (R E) x K and B is D x (R E).

Letters: T tokens, K inputs and D outputs of an expert's layer, E experts, R the rank, S the tokens of one expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.adapter.lora import AdapterSwitch, LoraAdapter, LoraWeights, frozen_linear, lora_linear
from worker.trainer.model.frozen_linear import FrozenLinear, freeze
from worker.trainer.model.patches import DOCUMENTS

NAME = "tunery_experts"


@dataclass(frozen=True)
class ExpertWeights:
    """The frozen weights of one parameter of an experts module, such as `model.layers.0.mlp.experts.down_proj`."""

    name: str
    experts: list[FrozenLinear]  # each D x K
    switch: AdapterSwitch

    @property
    def in_features(self) -> int:
        return self.experts[0].in_features

    @property
    def out_features(self) -> int:
        return self.experts[0].out_features


def is_experts_parameter(module: torch.nn.Module, parameter: str) -> bool:
    """Return whether the parameter is the stacked weight of all experts of a layer."""
    weight = module._parameters.get(parameter)
    return (
        hasattr(module, "num_experts") and hasattr(module, "is_transposed") and weight is not None and weight.ndim == 3
    )


def freeze_experts(
    module: Any,
    parameter: str,
    name: str,
    weights: torch.Tensor,
    switch: AdapterSwitch,
    quantization: QuantizationSpec | None,
    compute_dtype: torch.dtype,
) -> ExpertWeights:
    """Put the frozen experts into `module`, in place of the stacked parameter.

    A parameter of the same shape that needs no memory takes its place: PEFT finds names and shapes by it, and adds its
    own update to it when it loads an adapter (checkpoint/verify.py).
    """
    stacked = weights.transpose(1, 2) if module.is_transposed else weights  # E x D x K
    experts = [freeze(weight_D_K.contiguous(), quantization, compute_dtype) for weight_D_K in stacked]
    frozen = ExpertWeights(name, experts, switch)
    placeholder = torch.zeros(1, 1, 1, device=weights.device).expand(weights.shape)
    module._parameters[parameter] = torch.nn.Parameter(placeholder, requires_grad=False)
    vars(module).setdefault("frozen_experts", {})[parameter] = frozen
    return frozen


def experts_forward(
    module: Any, hidden_T_K: torch.Tensor, experts_T_C: torch.Tensor, weights_T_C: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of the outputs of the C experts that the router has chosen for each token."""
    first = "gate_up_proj" if module.has_gate else "up_proj"
    projections = {name: _Projection(module, name) for name in (first, "down_proj")}
    activate = module._apply_gate if module.has_gate else module.act_fn
    out_T_K = torch.zeros_like(hidden_T_K)
    for expert in torch.unique(experts_T_C).tolist():
        token_S, choice_S = torch.where(experts_T_C == expert)
        inner_S_F = activate(projections[first](hidden_T_K[token_S], expert))
        y_S_K = projections["down_proj"](inner_S_F, expert)
        if module.has_post_expert_norm:
            y_S_K = module.post_expert_norm(y_S_K)
        weighted_S_K = y_S_K * weights_T_C[token_S, choice_S, None]
        out_T_K = out_T_K.index_add(0, token_S, weighted_S_K.to(out_T_K.dtype))
    return out_T_K


class _Projection:
    """One linear layer of every expert, with the active adapter's factors by expert."""

    def __init__(self, module: Any, parameter: str) -> None:
        self.frozen: ExpertWeights = module.frozen_experts[parameter]
        self.bias_E_D = getattr(module, f"{parameter}_bias") if module.has_bias else None
        self.adapter = self.frozen.switch.active
        weights = self.adapter.layers.get(self.frozen.name) if self.adapter else None
        self.factors = None if weights is None else _by_expert(weights, len(self.frozen.experts))
        self.peft_update = _peft_update(module, parameter)

    def __call__(self, x_S_K: torch.Tensor, expert: int) -> torch.Tensor:
        base = self.frozen.experts[expert]
        if self.factors is None:
            y_S_D = frozen_linear(x_S_K, base)
        else:
            assert isinstance(self.adapter, LoraAdapter)
            y_S_D = lora_linear(x_S_K, base, self.factors[expert], self.adapter)
        if self.peft_update is not None:
            y_S_D = y_S_D + x_S_K @ self.peft_update[expert].t().to(x_S_K.dtype)
        return y_S_D if self.bias_E_D is None else y_S_D + self.bias_E_D[expert].to(y_S_D.dtype)


def _by_expert(weights: LoraWeights, experts: int) -> list[LoraWeights]:
    """Return A (R x K) and B (D x R) of each expert, as views that give one gradient for all."""
    A_E = weights.A_R_K.view(experts, -1, weights.A_R_K.shape[1]).unbind(0)
    B_E = weights.B_D_R.view(weights.B_D_R.shape[0], -1, experts).unbind(2)
    return [
        LoraWeights(A, B, weights.scale)  # type: ignore[arg-type]  # views of the parameters
        for A, B in zip(A_E, B_E, strict=True)
    ]


def _peft_update(module: Any, parameter: str) -> torch.Tensor | None:
    """Return the update that PEFT adds to the placeholder (E x D x K); None if PEFT has not loaded an adapter."""
    if not torch.nn.utils.parametrize.is_parametrized(module, parameter):
        return None
    update: torch.Tensor = getattr(module, parameter)
    return update.transpose(1, 2) if module.is_transposed else update


DOCUMENTS.put(f"experts: {NAME}", ALL_EXPERTS_FUNCTIONS, NAME, experts_forward)
