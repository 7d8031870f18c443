"""Memory-efficient norms and gated MLPs: they keep less for the backward and compute the same values.

transformers' RMSNorm keeps two float32 copies of its input, its gated MLP the activation in addition to the gate. These
modules keep the input in 16 bits and recompute the rest element-wise. Measured on SmolLM2-135M, one core: a norm takes
0.44 of the time, and together with block attention a token keeps 0.58 MB instead of 0.72 MB.

replacement.py puts them into a model.

Letters: T tokens, K the width, F the inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of gate and up; it keeps only its inputs


class RMSNorm(torch.nn.Module):
    """Root mean square norm over the last dimension (arXiv 1910.07467)."""

    def __init__(self, weight_K: torch.nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight_K
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _RMSNorm.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return y


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, each T x F."""
    inner: torch.Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return inner


class GatedMLP(torch.nn.Module):
    """down(silu(gate(x)) * up(x)), or with another product of gate and up (arXiv 2002.05202)."""

    def __init__(
        self,
        gate_proj: torch.nn.Module,
        up_proj: torch.nn.Module,
        down_proj: torch.nn.Module,
        product: Product = swiglu,
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.product(self.gate_proj(x), self.up_proj(x)))
        return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_K: torch.Tensor, epsilon: float) -> torch.Tensor:
        x_float32 = x.float()
        mean_square = torch.linalg.vector_norm(x_float32, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale_T_1 = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale_T_1, weight_K)
        return x_float32.mul(scale_T_1).to(x.dtype).mul_(weight_K)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, scale_T_1, weight_K = ctx.saved_tensors
        dnormed, normed = (dy * weight_K).float(), x.float().mul(scale_T_1)
        projection_T_1 = torch.linalg.vecdot(dnormed, normed).unsqueeze(-1).div_(x.shape[-1])
        dx = dnormed.addcmul(normed, projection_T_1, value=-1).mul_(scale_T_1)
        dweight_K = (dy.float() * normed).flatten(0, -2).sum(0).to(weight_K.dtype) if ctx.needs_input_grad[1] else None
        return dx.to(x.dtype), dweight_K, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_T_F: torch.Tensor, up_T_F: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_T_F, up_T_F)
        return F.silu(gate_T_F).mul_(up_T_F)

    @staticmethod
    def backward(ctx: Any, dy_T_F: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate_T_F, up_T_F = ctx.saved_tensors
        dgate_T_F = torch.ops.aten.silu_backward(dy_T_F * up_T_F, gate_T_F)
        return dgate_T_F, F.silu(gate_T_F).mul_(dy_T_F)
