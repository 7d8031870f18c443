"""LoRA on frozen linear layers: h = W x + scale * B A x.

A and B are float32 masters, which are cast to the compute dtype for the product; the optimizer updates the masters. B
is initialized with zeros, so step 0 is the base model. One autograd function computes all of it: the backward
dequantizes W again instead of keeping it, and no T x D delta is allocated.

Letters: T tokens, K inputs and D outputs of a layer, R the rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from app.domain.jobs.layer_patterns import rank_of, scale_of
from app.domain.jobs.spec import LoraSpec
from app.domain.jobs.states import Reason
from worker.trainer.kernels.kernels import Kernels
from worker.trainer.model.frozen_experts import ExpertStack
from worker.trainer.model.frozen_linear import FrozenLinear
from worker.trainer.runtime.failures import Failure

PEFT_PREFIX = "base_model.model."  # PEFT's name of the model in its wrapper


@dataclass
class LoraWeights:
    """A, B and the scale of one layer; rank and alpha may differ between layers."""

    A_R_K: torch.nn.Parameter
    B_D_R: torch.nn.Parameter
    scale: float
    magnitude_D: torch.nn.Parameter | None = None  # noqa: N815  only with DoRA
    saved_name: str | None = None  # in PEFT's files, if it is not the layer's name


@dataclass
class LoraAdapter:
    """All trained tensors: LoRA weights by layer name, in the model's order, and those of modules_to_save."""

    dropout: float
    generator: torch.Generator  # only for dropout masks
    layers: dict[str, LoraWeights]
    kernels: Kernels
    module_masters: dict[str, torch.nn.Parameter] = field(default_factory=dict)  # float32, by names in the base

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters by PEFT's names in adapter_model.safetensors."""
        named: dict[str, torch.nn.Parameter] = {}
        for name, weights in self.layers.items():
            layer = weights.saved_name or name
            named[f"{PEFT_PREFIX}{layer}.lora_A.weight"] = weights.A_R_K
            named[f"{PEFT_PREFIX}{layer}.lora_B.weight"] = weights.B_D_R
            if weights.magnitude_D is not None:
                named[f"{PEFT_PREFIX}{layer}.lora_magnitude_vector"] = weights.magnitude_D
        return named | {PEFT_PREFIX + name: parameter for name, parameter in self.module_masters.items()}


class AdapterSwitch:
    """The adapter that all adapted layers apply now; without one the model is the base model."""

    def __init__(self) -> None:
        self.active: LoraAdapter | None = None

    @contextmanager
    def on(self, adapter: LoraAdapter | None) -> Iterator[None]:
        """Apply `adapter` in the block; None stands for the base model."""
        outer, self.active = self.active, adapter
        try:
            yield
        finally:
            self.active = outer


@contextmanager
def kept_state(generator: torch.Generator, state: torch.Tensor | None = None) -> Iterator[None]:
    """Restore the generator's own state after the block, which begins with `state` if there is one."""
    own = generator.get_state()
    if state is not None:
        generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(own)


class AdaptedLinear(torch.nn.Module):
    """Takes the place of a frozen linear layer in the model; without an active adapter it equals it to the bit."""

    def __init__(self, name: str, base: FrozenLinear, switch: AdapterSwitch) -> None:
        super().__init__()
        self.name = name
        self.base: Any = base
        self._switch = switch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., K) to (..., D) in the dtype of `x`; the leading dimensions together are the T tokens of a batch.

        Dropout applies only if gradients are enabled.
        """
        x_T_K = x.reshape(-1, x.shape[-1])
        adapter = self._switch.active
        weights = adapter.layers.get(self.name) if adapter else None
        if adapter and weights:
            rate = adapter.dropout if torch.is_grad_enabled() else 0.0
            factors = weights.scale, weights.A_R_K, weights.B_D_R
            y_T_D: torch.Tensor = _LoraLinear.apply(x_T_K, self.base, adapter, rate, *factors)  # type: ignore[no-untyped-call]
        else:
            y_T_D = frozen_linear(x_T_K, self.base)
        return y_T_D.view(*x.shape[:-1], y_T_D.shape[-1])


def frozen_linear(x_T_K: torch.Tensor, base: FrozenLinear) -> torch.Tensor:
    """Return x W^T + bias. The backward dequantizes W again; plain autograd would keep it."""
    y_T_D: torch.Tensor = _FrozenLinear.apply(x_T_K, base)  # type: ignore[no-untyped-call]
    return y_T_D


class _FrozenLinear(torch.autograd.Function):
    """The gradient of x; W gets none."""

    @staticmethod
    def forward(ctx: Any, x_T_K: torch.Tensor, base: FrozenLinear) -> torch.Tensor:
        ctx.base = base
        return F.linear(x_T_K, base.weight_in(x_T_K.dtype), base.bias_in(x_T_K.dtype))

    @staticmethod
    def backward(ctx: Any, dy_T_D: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return dy_T_D @ ctx.base.weight_in(dy_T_D.dtype), None


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scale * (drop(x) A^T) B^T. Gradients of x, and of the float32 masters A and B; W gets none."""

    @staticmethod
    def forward(
        ctx: Any,
        x_T_K: torch.Tensor,
        base: FrozenLinear,
        adapter: LoraAdapter,
        rate: float,
        scale: float,
        A_R_K: torch.Tensor,
        B_D_R: torch.Tensor,
    ) -> torch.Tensor:
        A_R_K, B_D_R = A_R_K.to(x_T_K.dtype), B_D_R.to(x_T_K.dtype)
        y_T_D = F.linear(x_T_K, base.weight_in(x_T_K.dtype), base.bias_in(x_T_K.dtype))
        # A fused backward draws the mask again from this state, instead of keeping a byte for each input.
        ctx.state = adapter.generator.get_state() if rate and adapter.kernels.is_fused else None
        dropped_T_K, keep_T_K = drop(x_T_K, rate, adapter.generator)
        u_T_R = dropped_T_K @ A_R_K.t()
        y_T_D.addmm_(u_T_R, B_D_R.t(), alpha=scale)
        if ctx.state is not None:
            keep_T_K = keep_T_K.new_empty(0)
        ctx.base, ctx.adapter, ctx.scale, ctx.rate = base, adapter, scale, rate
        ctx.save_for_backward(x_T_K, A_R_K, B_D_R, u_T_R, keep_T_K)
        return y_T_D

    @staticmethod
    def backward(ctx: Any, dy_T_D: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_T_K, A_R_K, B_D_R, u_T_R, keep_T_K = ctx.saved_tensors
        if ctx.state is not None:
            with kept_state(ctx.adapter.generator, ctx.state):
                keep_T_K = _draw_mask(x_T_K, ctx.rate, ctx.adapter.generator)
        dx_T_K = dy_T_D @ ctx.base.weight_in(dy_T_D.dtype) if ctx.needs_input_grad[0] else None
        du_T_R = (dy_T_D @ B_D_R).mul_(ctx.scale)
        dA_R_K = _sum_of_products(ctx.adapter.kernels, du_T_R, _apply_mask(x_T_K, keep_T_K, ctx.rate))
        dB_D_R = _sum_of_products(ctx.adapter.kernels, dy_T_D, u_T_R, ctx.scale)
        if dx_T_K is not None and ctx.rate:
            dx_T_K.add_(_apply_mask(du_T_R @ A_R_K, keep_T_K, ctx.rate))
        elif dx_T_K is not None:
            dx_T_K.addmm_(du_T_R, A_R_K)  # needs no temporary of T x K
        return dx_T_K, None, None, None, None, dA_R_K, dB_D_R


def _sum_of_products(
    kernels: Kernels, left_T_M: torch.Tensor, right_T_N: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Return scale * left^T right in float32."""
    if left_T_M.dtype == torch.float16:
        return kernels.sum_of_float16_products(left_T_M, right_T_N).mul_(scale)
    return (left_T_M.t() @ right_T_N).mul_(scale).float()


def drop(x_T_K: torch.Tensor, rate: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply dropout to LoRA's input, as PEFT does; return it and the mask. Without dropout the mask is empty."""
    if not rate:
        return x_T_K, x_T_K.new_empty(0, dtype=torch.bool)
    keep_T_K = _draw_mask(x_T_K, rate, generator)
    return _apply_mask(x_T_K, keep_T_K, rate), keep_T_K


def _draw_mask(x_T_K: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    return torch.empty_like(x_T_K, dtype=torch.bool).bernoulli_(1 - rate, generator=generator)


def _apply_mask(x_T_K: torch.Tensor, keep_T_K: torch.Tensor, rate: float) -> torch.Tensor:
    return x_T_K * keep_T_K / (1 - rate) if rate else x_T_K


def make_adapter(
    lora: LoraSpec,
    seed: int,
    layers: dict[str, AdaptedLinear],
    kernels: Kernels,
    experts: Mapping[str, ExpertStack] | None = None,
    dropout_seed: int | None = None,
) -> LoraAdapter:
    """Return a new adapter, initialized as in PEFT: A Kaiming-uniform with a = sqrt(5) (within 1 / sqrt(K)), B zero.

    `experts` are the stacked weights that `lora.target_parameters` may name, by full name.

    A is drawn on the CPU in the order of the layers, so a seed gives the same adapter on every device. Raises Failure
    for target modules that the model does not have, for a pattern that is not the name of a target, and for a rank
    above the smaller dimension of a target.
    """
    generator, stacks = torch.Generator().manual_seed(seed), experts or {}

    def new_weights(base: FrozenLinear | ExpertStack, name: str, r: int, saved_name: str | None = None) -> LoraWeights:
        bound = 1 / math.sqrt(base.in_features)
        A_R_K = torch.empty(r, base.in_features).uniform_(-bound, bound, generator=generator)
        A, B = (torch.nn.Parameter(each.to(kernels.device)) for each in (A_R_K, torch.zeros(base.out_features, r)))
        return LoraWeights(A, B, scale_of(lora, name), saved_name=saved_name)

    weights = {name: new_weights(layers[name].base, name, rank_of(lora, name)) for name in _targets(lora, layers)}
    for name, saved_name in _expert_targets(lora, stacks).items():
        weights[name] = new_weights(stacks[name], name, rank_of(lora, name) * stacks[name].count, saved_name)
    dropout_generator = torch.Generator(kernels.device).manual_seed(seed if dropout_seed is None else dropout_seed)
    return LoraAdapter(lora.dropout, dropout_generator, weights, kernels)


def frozen_copy(adapter: LoraAdapter) -> LoraAdapter:
    """Return a copy of the adapter for forwards without gradients; these use no dropout, so the generator is shared."""
    return deepcopy(adapter, {id(shared): shared for shared in (adapter.generator, adapter.kernels)})


def _expert_targets(lora: LoraSpec, experts: Mapping[str, ExpertStack]) -> dict[str, str]:
    """Return the full names of the targeted experts, each with its name in PEFT's files. Raises Failure(INVALID_SPEC).

    PEFT wraps the targeted parameters of a module in their order, each around the one before: the tensors of all but
    the last have a name with `base_layer`.
    """
    if unknown := [name for name in lora.target_parameters if not any(_ends(full, name) for full in experts)]:
        available = ", ".join(sorted({".".join(name.split(".")[-2:]) for name in experts}))
        has = f"it has {available}" if available else "it has no experts"
        text = f"lora.target_parameters: no stacked weight of the base model is named {', '.join(unknown)}; {has}."
        raise Failure(Reason.INVALID_SPEC, text, "lora.target_parameters")
    param = "lora.experts" if lora.experts else "lora.target_parameters"
    if lora.experts and not experts:
        raise Failure(Reason.INVALID_SPEC, "lora.experts: the base model has no experts; leave it out.", param)
    if lora.adapts_experts and (lora.dropout or lora.use_dora):
        text = f"{param}: PEFT adapts experts without dropout and without DoRA; leave those two out."
        raise Failure(Reason.INVALID_SPEC, text, param)
    names = [full for full in experts if lora.experts or any(_ends(full, name) for name in lora.target_parameters)]
    modules = [name.rpartition(".")[0] for name in names]
    later = [modules[index + 1 :].count(module) for index, module in enumerate(modules)]
    return {name: module + ".base_layer" * count for name, module, count in zip(names, modules, later, strict=True)}


def _ends(full_name: str, name: str) -> bool:
    return full_name == name or full_name.endswith(f".{name}")


def _targets(lora: LoraSpec, layers: dict[str, AdaptedLinear]) -> list[str]:
    """Return the names of the layers whose last part is among the target modules. Raises Failure(INVALID_SPEC)."""
    available = sorted({name.rpartition(".")[2] for name in layers})
    if unknown := sorted(set(lora.target_modules) - set(available)):
        text = f"The base model has no linear layer named {', '.join(unknown)}; it has {', '.join(available)}."
        raise Failure(Reason.INVALID_SPEC, text, "lora.target_modules")
    targets = [name for name in layers if name.rpartition(".")[2] in lora.target_modules]
    escaped = {re.escape(name) for name in targets}
    for param, patterns in (("lora.rank_pattern", lora.rank_pattern), ("lora.alpha_pattern", lora.alpha_pattern)):
        for key in patterns:
            if key.removeprefix("^") not in escaped:  # PEFT would match it with other layers, too
                text = f"{param}: {key!r} is not the escaped full name of a target layer, such as {targets[0]}."
                raise Failure(Reason.INVALID_SPEC, text, param)
    for name in targets:
        limit = min(layers[name].base.out_features, layers[name].base.in_features)
        if (r := rank_of(lora, name)) > limit:
            param = "lora.r" if r == lora.r else "lora.rank_pattern"
            text = f"{param} is {r}, but the smaller dimension of {name} is {limit}; choose a rank up to {limit}."
            raise Failure(Reason.INVALID_SPEC, text, param)
    return targets
