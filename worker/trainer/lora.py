"""LoRA on frozen linear layers: h = W x + scale * B A x, for the tokens of each run its own A and B.

    row       | tokens of run 0 ....... | tokens of run 1 .. |      one W for all of them
    products  |  B0 A0 x                |  B1 A1 x           |      one run is the case of one segment

A and B are float32 masters, cast to the compute dtype for the product; the optimizer sees float32 only. B starts at
zero, so step 0 is the base model. One autograd Function for all of it: the dequantised W is made again in the backward
instead of being kept, and no T x D delta is ever stored.

Letters: T tokens, K inputs and D outputs of a layer, R the rank, S the tokens of one segment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from app.domain.patterns import rank_of, scale_of
from app.domain.spec import LoraSpec
from app.domain.states import Reason
from worker.trainer.batch import Segment
from worker.trainer.failures import Failure
from worker.trainer.frozen import FrozenLinear

PEFT_PREFIX = "base_model.model."  # what PEFT calls the model inside its own wrapper


@dataclass
class Factors:
    """One layer's A and B of one run, and its scale: each layer may have a rank and an alpha of its own."""

    A_R_K: torch.nn.Parameter
    B_D_R: torch.nn.Parameter
    scale: float
    magnitude_D: torch.nn.Parameter | None = None  # noqa: N815  of DoRA


@dataclass
class Adapter:
    """Everything that one run trains: the factors by layer name, in the model's order, and modules_to_save."""

    run_id: str
    dropout: float
    generator: torch.Generator  # of this run's dropout masks, and of nothing else
    factors: dict[str, Factors]
    module_masters: dict[str, torch.nn.Parameter] = field(default_factory=dict)  # by names in the base, float32

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """By the names PEFT gives them in adapter_model.safetensors."""
        named: dict[str, torch.nn.Parameter] = {}
        for layer, factors in self.factors.items():
            named[f"{PEFT_PREFIX}{layer}.lora_A.weight"] = factors.A_R_K
            named[f"{PEFT_PREFIX}{layer}.lora_B.weight"] = factors.B_D_R
            if factors.magnitude_D is not None:
                named[f"{PEFT_PREFIX}{layer}.lora_magnitude_vector"] = factors.magnitude_D
        return named | {PEFT_PREFIX + name: parameter for name, parameter in self.module_masters.items()}


class Routing:
    """Which tokens of the row in flight belong to which adapter; every adapted layer looks here."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.segments: Sequence[Segment] = ()

    @property
    def alone(self) -> Adapter | None:
        """The adapter of an exclusive run, which has every row to itself; None where adapters are off."""
        return self.adapters[self.segments[0].run_id] if self.segments else None

    @contextmanager
    def of(self, segments: Sequence[Segment]) -> Iterator[None]:
        self.segments = segments
        try:
            yield
        finally:
            self.segments = ()


class AdaptedLinear(torch.nn.Module):
    """Stands where a frozen linear layer stood; without segments it is that layer, to the bit."""

    def __init__(self, name: str, base: FrozenLinear, routing: Routing) -> None:
        super().__init__()
        self.name = name
        self.base: Any = base
        self._routing = routing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., D), in the dtype of `x`; the leading dimensions together are the row's T tokens."""
        x_T_K = x.reshape(-1, x.shape[-1])
        parts, factors = self._parts(x.dtype)
        y_T_D: torch.Tensor = _LoraProduct.apply(x_T_K, self.base, parts, *factors)  # type: ignore[no-untyped-call]
        return y_T_D.view(*x.shape[:-1], y_T_D.shape[-1])

    def _parts(self, dtype: torch.dtype) -> tuple[list[_Part], list[torch.Tensor]]:
        parts: list[_Part] = []
        factors: list[torch.Tensor] = []
        for segment in self._routing.segments:
            adapter = self._routing.adapters[segment.run_id]
            if mine := adapter.factors.get(self.name):
                dropout = adapter.dropout if torch.is_grad_enabled() else 0.0  # without gradients: evaluation
                parts.append(_Part(segment.start, segment.end, mine.scale, dropout, adapter.generator))
                factors += [mine.A_R_K.to(dtype), mine.B_D_R.to(dtype)]
        return parts, factors


@dataclass(frozen=True)
class _Part:
    start: int
    end: int
    scale: float
    dropout: float
    generator: torch.Generator


class _LoraProduct(torch.autograd.Function):
    """y = x W^T + bias, and in each part's rows + scale * (drop(x) A^T) B^T. W gets no gradient, ever."""

    @staticmethod
    def forward(
        ctx: Any, x_T_K: torch.Tensor, base: FrozenLinear, parts: list[_Part], *factors: torch.Tensor
    ) -> torch.Tensor:
        y_T_D = F.linear(x_T_K, base.weight_in(x_T_K.dtype), base.bias_in(x_T_K.dtype))
        kept: list[torch.Tensor] = []
        for part, A_R_K, B_D_R in zip(parts, factors[::2], factors[1::2], strict=True):
            x_S_K, keep_S_K = drop(x_T_K[part.start : part.end], part.dropout, part.generator)
            u_S_R = x_S_K @ A_R_K.t()
            y_T_D[part.start : part.end].addmm_(u_S_R, B_D_R.t(), alpha=part.scale)
            kept += [u_S_R, keep_S_K]
        ctx.base, ctx.parts = base, parts
        ctx.save_for_backward(x_T_K if parts else x_T_K.new_empty(0), *factors, *kept)
        return y_T_D

    @staticmethod
    def backward(ctx: Any, dy_T_D: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_T_K, *rest = ctx.saved_tensors
        factors, kept = rest[: 2 * len(ctx.parts)], rest[2 * len(ctx.parts) :]
        dx_T_K = dy_T_D @ ctx.base.weight_in(dy_T_D.dtype) if ctx.needs_input_grad[0] else None
        gradients: list[torch.Tensor | None] = []
        for i, part in enumerate(ctx.parts):
            (A_R_K, B_D_R), (u_S_R, keep_S_K) = factors[2 * i : 2 * i + 2], kept[2 * i : 2 * i + 2]
            dy_S_D = dy_T_D[part.start : part.end]
            du_S_R = (dy_S_D @ B_D_R).mul_(part.scale)
            x_S_K = _apply(x_T_K[part.start : part.end], keep_S_K, part.dropout)
            gradients += [du_S_R.t() @ x_S_K, (dy_S_D.t() @ u_S_R).mul_(part.scale)]
            if dx_T_K is not None:
                _add_product(dx_T_K[part.start : part.end], du_S_R, A_R_K, keep_S_K, part)
        return dx_T_K, None, None, *gradients


def drop(x_S_K: torch.Tensor, dropout: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Dropout on LoRA's input, as PEFT has it, and what was kept. An empty mask stands for: everything."""
    if not dropout:
        return x_S_K, x_S_K.new_empty(0, dtype=torch.bool)
    keep_S_K = torch.empty_like(x_S_K, dtype=torch.bool).bernoulli_(1 - dropout, generator=generator)
    return _apply(x_S_K, keep_S_K, dropout), keep_S_K


def _add_product(
    dx_S_K: torch.Tensor, du_S_R: torch.Tensor, A_R_K: torch.Tensor, keep_S_K: torch.Tensor, part: _Part
) -> None:
    if part.dropout:
        dx_S_K.add_(_apply(du_S_R @ A_R_K, keep_S_K, part.dropout))
    else:
        dx_S_K.addmm_(du_S_R, A_R_K)  # without a temporary of S x K


def _apply(x_S_K: torch.Tensor, keep_S_K: torch.Tensor, dropout: float) -> torch.Tensor:
    return x_S_K * keep_S_K / (1 - dropout) if dropout else x_S_K


def frozen_product(x_T_K: torch.Tensor, base: FrozenLinear) -> torch.Tensor:
    """x W^T + bias. The dequantised W is made again in the backward, which plain autograd would keep instead."""
    y_T_D: torch.Tensor = _LoraProduct.apply(x_T_K, base, [])  # type: ignore[no-untyped-call]
    return y_T_D


def make_adapter(
    run_id: str, lora: LoraSpec, seed: int, layers: dict[str, AdaptedLinear], device: torch.device
) -> Adapter:
    """A as PEFT starts it (Kaiming-uniform with a = sqrt(5): uniform within 1 / sqrt(K)), B zero.

    Drawn on the CPU in the layers' order, so a seed means the same adapter on every device. Raises Failure for target
    modules that the model does not have, for a pattern that is not a target's name, and for a rank above a target's
    smaller side.
    """
    targets = _targets(lora, layers)
    init = torch.Generator().manual_seed(seed)
    factors = {name: _factors(layers[name].base, lora, name, init, device) for name in targets}
    generator = torch.Generator(device).manual_seed(seed)
    return Adapter(run_id, lora.dropout, generator, factors)


def frozen_copy(adapter: Adapter) -> Adapter:
    """The adapter as it is now, for forwards without a gradient: those draw no dropout, so its generator is shared."""
    return deepcopy(adapter, {id(adapter.generator): adapter.generator})


def _factors(base: FrozenLinear, lora: LoraSpec, name: str, init: torch.Generator, device: torch.device) -> Factors:
    reach, r = 1 / math.sqrt(base.in_features), rank_of(lora, name)
    A_R_K = torch.empty(r, base.in_features).uniform_(-reach, reach, generator=init)
    B_D_R = torch.zeros(base.out_features, r)
    return Factors(torch.nn.Parameter(A_R_K.to(device)), torch.nn.Parameter(B_D_R.to(device)), scale_of(lora, name))


def _targets(lora: LoraSpec, layers: dict[str, AdaptedLinear]) -> list[str]:
    """The layers whose last name is asked for."""
    available = sorted({name.rpartition(".")[2] for name in layers})
    if unknown := sorted(set(lora.target_modules) - set(available)):
        text = f"The base model has no linear layer named {', '.join(unknown)}; it has {', '.join(available)}."
        raise Failure(Reason.INVALID_SPEC, text, "lora.target_modules")
    targets = [name for name in layers if name.rpartition(".")[2] in lora.target_modules]
    _check_patterns(lora, targets)
    for name in targets:
        limit = min(layers[name].base.out_features, layers[name].base.in_features)
        if (r := rank_of(lora, name)) > limit:
            param = "lora.r" if r == lora.r else "lora.rank_pattern"
            text = f"{param} is {r}, but the layer {name} is only {limit} wide; choose a rank up to {limit}."
            raise Failure(Reason.INVALID_SPEC, text, param)
    return targets


def _check_patterns(lora: LoraSpec, targets: list[str]) -> None:
    """Each key is one target. Anything else would be ignored here, and matched by whoever loads the adapter."""
    known = {re.escape(name) for name in targets}
    for param, patterns in (("lora.rank_pattern", lora.rank_pattern), ("lora.alpha_pattern", lora.alpha_pattern)):
        for key in patterns:
            if key.removeprefix("^") not in known:
                text = f"{param}: {key!r} is not the escaped full name of a target layer, such as {targets[0]}."
                raise Failure(Reason.INVALID_SPEC, text, param)
