"""Fused kernels of Liger Kernel (arXiv 2410.10989, an optional extra) on CUDA: norms, gated MLPs, rotary embeddings.

Each takes the place of several element-wise passes over the hidden states. They change the order of roundings, so a
module is replaced only if the replacement has the same output on a few random tokens within one rounding of the compute
dtype, and the same gradients; what remains is a module of memory_efficient_modules.py or of transformers.

Two kernels write into their inputs: the gated products store the gradients of gate and up in place of them, and the
rotary embedding rotates queries and keys in place. The gate and up are used by nothing after the backward of their
product. Queries and keys may be the output of a norm, which activation checkpointing recognizes by its address, so they
are copied before they are rotated.

The rotary kernel takes the size of a head from the queries and reads as many columns of cosines and sines. Where a
model rotates a part of each head only, they have fewer, so transformers' own function computes these calls.

Letters: T tokens, H heads, D per head, K the width.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.func import functional_call

from worker.trainer.model.memory_efficient_modules import (
    COMPARED_TOKENS,
    GatedMLP,
    RMSNorm,
    gated_layers,
    is_equal,
    norm_parameters,
)
from worker.trainer.runtime.failures import is_device_lost, is_out_of_memory

ROUNDINGS = 2.0  # of the compute dtype, relative to the largest value: one each of two orders of the same operations
MAX_GRADIENT_DIFFERENCE = 2e-2  # of the norm: bfloat16 has steps of 4e-3, and a gradient several operations
# LigerRMSNormFunction has another kernel for so many rows of a small width: the norms of queries and keys.
MANY_ROWS, SMALL_WIDTH = 32_768, 256
COMPARED_HEADS, COMPARED_HEAD_SIZE = 2, 64
ROTARY_FUNCTION = "apply_rotary_pos_emb"  # of the modeling modules of transformers
# LigerRMSNormFunction: what is added to the weight, and where it casts to float32
NORM_VARIANTS = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"))

Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class FusedRMSNorm(RMSNorm):
    """LigerRMSNormFunction; like `RMSNorm` it keeps only its input for the backward."""

    def __init__(self, weight_K: torch.nn.Parameter, epsilon: float, offset: float, casting: str, apply: Any) -> None:
        super().__init__(weight_K, epsilon)
        self._offset, self._casting, self._apply_kernel = offset, casting, apply

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._apply_kernel(x, self.weight, self.epsilon, self._offset, self._casting, False)
        return y


class FusedRotary:
    """LigerRopeFunction; transformers' function still computes calls that rotate a part of each head."""

    def __init__(self, original: Rotate, apply: Rotate) -> None:
        self.original, self._apply_kernel = original, apply

    def __call__(
        self,
        query_1_H_T_D: torch.Tensor,
        key_1_H_T_D: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if options or cos.shape[-1] != query_1_H_T_D.shape[-1]:
            return self.original(query_1_H_T_D, key_1_H_T_D, cos, sin, **options)
        # Copies in the order T, H, D, which the kernel needs; it would copy others itself.
        query, key = (
            x.transpose(1, 2).clone(memory_format=torch.contiguous_format) for x in (query_1_H_T_D, key_1_H_T_D)
        )
        return self._apply_kernel(query.transpose(1, 2), key.transpose(1, 2), cos, sin)


@torch.no_grad()
def use_fused_modules(model: Any, dtype: torch.dtype) -> tuple[dict[str, int], str]:
    """Replace modules of `model`, which computes in `dtype`. Returns the number of each kind, and why there is none.

    The rotary function is replaced in its module, so for every model of this architecture in this process. All kernels
    run before the first replacement, so an error of one of them leaves the model as it is.
    """
    tolerance = ROUNDINGS * torch.finfo(dtype).eps
    try:
        ops = importlib.import_module("liger_kernel.ops")
        fused = list(_equal_modules(model, ops, dtype, tolerance))
        rotary = list(_equal_rotary(model, ops, dtype, tolerance))
    except ImportError as error:
        return {}, f"liger-kernel cannot be imported ({error})"
    except Exception as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return {}, f"a kernel of liger-kernel failed ({type(error).__name__}: {' '.join(str(error).split())})"
    for name, _, replacement in fused:
        model.set_submodule(name, replacement)
    for module, rotate in rotary:
        setattr(module, ROTARY_FUNCTION, rotate)
    return dict(Counter([kind for _, kind, _ in fused] + ["rotary embeddings"] * len(rotary))), ""


def _equal_modules(
    model: Any, ops: Any, dtype: torch.dtype, tolerance: float
) -> Iterator[tuple[str, str, torch.nn.Module]]:
    """Yield name, kind and replacement of each module that has an equal one."""
    for name, module in model.named_modules():
        for kind, replacement in _replacements(module, ops):
            is_small = isinstance(replacement, FusedRMSNorm) and replacement.weight.numel() <= SMALL_WIDTH
            sizes = (COMPARED_TOKENS, MANY_ROWS) if is_small else (COMPARED_TOKENS,)
            if all(
                is_equal(module, replacement, dtype, tolerance, tokens)
                and _has_equal_gradients(module, replacement, dtype, tokens)
                for tokens in sizes
            ):
                yield name, kind, replacement
                break


def _replacements(module: torch.nn.Module, ops: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the fused modules that may equal the module."""
    if parameters := norm_parameters(module):
        for offset, casting in NORM_VARIANTS:
            yield "norms", FusedRMSNorm(*parameters, offset, casting, ops.LigerRMSNormFunction.apply)
    if layers := gated_layers(module):
        for function in (ops.LigerSiLUMulFunction, ops.LigerGELUMulFunction):
            gate, up, down = layers
            yield "gated MLPs", GatedMLP(gate, up, down, function.apply)


def _has_equal_gradients(module: torch.nn.Module, replacement: Any, dtype: torch.dtype, tokens: int) -> bool:
    """Return whether both have the same gradients of the input, and of a norm's weight, which a job may train."""
    weights = {"weight": replacement.weight} if isinstance(replacement, FusedRMSNorm) else {}
    width = replacement.weight.shape[0] if weights else replacement.gate_proj.base.in_features
    device = next(module.parameters()).device
    x_T_K = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def gradients(each: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        return _gradients(
            lambda x, *values: (functional_call(each, dict(zip(weights, values, strict=True)), (x,)),),
            (x_T_K, *weights.values()),
        )

    return _are_close(gradients(replacement), gradients(module))


def _gradients(
    function: Callable[..., tuple[torch.Tensor, ...]], inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Return the gradient of a fixed weighted sum of the outputs, by each input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    generator = torch.Generator().manual_seed(1)
    with torch.enable_grad():
        outputs = function(*leaves)
        weights = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
        return torch.autograd.grad(outputs, leaves, weights)


def _are_close(gradients: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> bool:
    pairs = zip(gradients, expected, strict=True)
    return all(bool((one - two).norm() <= MAX_GRADIENT_DIFFERENCE * two.norm()) for one, two in pairs)


def _equal_rotary(model: Any, ops: Any, dtype: torch.dtype, tolerance: float) -> Iterator[tuple[Any, FusedRotary]]:
    """Yield the model's modeling modules with an equal replacement of their rotary function."""
    device = next(model.parameters()).device
    for module in {sys.modules[type(module).__module__] for module in model.modules()}:
        original = getattr(module, ROTARY_FUNCTION, None)
        if not callable(original):
            continue
        if isinstance(original, FusedRotary):  # by an earlier load
            original = original.original
        rotate = FusedRotary(original, ops.LigerRopeFunction.apply)
        if _rotates_equally(original, rotate, device, dtype, tolerance):
            yield module, rotate


def _rotates_equally(
    original: Rotate, replacement: Rotate, device: torch.device, dtype: torch.dtype, tolerance: float
) -> bool:
    generator = torch.Generator().manual_seed(0)
    shape = (1, COMPARED_HEADS, COMPARED_TOKENS, COMPARED_HEAD_SIZE)
    query, key = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    angle = torch.rand(1, COMPARED_TOKENS, COMPARED_HEAD_SIZE // 2, generator=generator).repeat(1, 1, 2).to(device)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    try:
        expected = original(query, key, cos, sin)
    except (TypeError, RuntimeError):  # another signature, or other shapes of cos and sin
        return False
    pairs = zip(replacement(query, key, cos, sin), expected, strict=True)
    if not all(bool((one - two).abs().max() <= tolerance * two.abs().max()) for one, two in pairs):
        return False
    ours, theirs = (
        _gradients(lambda *heads, rotate=rotate: rotate(*heads, cos, sin), (query, key))
        for rotate in (replacement, original)
    )
    return _are_close(ours, theirs)
