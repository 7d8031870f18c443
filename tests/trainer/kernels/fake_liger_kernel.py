"""A stand-in for `liger_kernel.ops`: the same functions in plain torch, with the same writes into their inputs.

The package needs Triton and a GPU to be imported. What it computes there is checked by `make gpu-check`.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.kernels.cpu.memory import CpuMemory
from worker.trainer.kernels.kernels import cuda_kernels

# What CUDA turns on, but on a CPU, which has no pinned memory.
FUSED_ON_CPU = replace(
    cuda_kernels(torch.device("cpu"), is_fused=True),
    kind="cpu",
    memory=CpuMemory(),
    synchronize=lambda: None,
    pins_batches=False,
)


class LigerRMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        offset: float = 0.0,
        casting_mode: str = "llama",
        in_place: bool = True,
        row_mode: object = None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.offset, ctx.casting_mode, ctx.in_place = epsilon, offset, casting_mode, in_place
        return _norm(x, weight, epsilon, offset, casting_mode)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
        with torch.enable_grad():
            y = _norm(*leaves, ctx.epsilon, ctx.offset, ctx.casting_mode)
        dx, dweight = torch.autograd.grad(y, leaves, dy)
        return (dy.copy_(dx) if ctx.in_place else dx), dweight, None, None, None, None, None


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float, casting_mode: str) -> torch.Tensor:
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    if casting_mode == "llama":
        return normed.to(x.dtype) * (weight + offset)
    return (normed * (weight.float() + offset)).to(x.dtype)


def _product(act: Any) -> Any:
    """The backward stores the gradients in place of gate and up."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(gate, up)
            return act(gate) * up

        @staticmethod
        def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            gate, up = ctx.saved_tensors
            leaves = gate.detach().clone().requires_grad_(), up.detach().clone().requires_grad_()
            with torch.enable_grad():
                y = act(leaves[0]) * leaves[1]
            dgate, dup = torch.autograd.grad(y, leaves, dy)
            with torch.no_grad():  # as a kernel does it, without the knowledge of autograd
                gate.data.copy_(dgate)
                up.data.copy_(dup)
            return gate, up

    return Product


LigerSiLU = _product(F.silu)


class LigerRopeFunction(torch.autograd.Function):
    """Rotates queries and keys in place."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        for x in (query, key):
            x.data.copy_(_rotated(x, cos, sin))
        return query.transpose(1, 2).transpose(1, 2), key.transpose(1, 2).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dquery: torch.Tensor, dkey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(dquery, cos, -sin), _rotated(dkey, cos, -sin), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


def modules() -> dict[str, types.ModuleType]:
    """The package and its module, for `sys.modules`."""
    package, ops = types.ModuleType("liger_kernel"), types.ModuleType("liger_kernel.ops")
    functions: dict[str, Any] = {
        "LigerRMSNormFunction": LigerRMSNormFunction,
        "LigerSiLUMulFunction": LigerSiLU,
        "LigerGELUMulFunction": _product(lambda gate: F.gelu(gate, approximate="tanh")),
        "LigerRopeFunction": LigerRopeFunction,
    }
    for name, function in functions.items():
        setattr(ops, name, function)
    package.ops = ops  # type: ignore[attr-defined]
    return {"liger_kernel": package, "liger_kernel.ops": ops}
