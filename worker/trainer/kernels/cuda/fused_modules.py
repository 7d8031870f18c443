"""Fused kernels of Liger Kernel (arXiv 2410.10989, an optional extra) on CUDA: norms, gated MLPs, rotary embeddings.

Each takes the place of several element-wise passes over the hidden states (replacement.py); what has no equal one stays
as it is.

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
from functools import partial
from typing import Any

import torch

from worker.trainer.kernels.modules import RMSNorm
from worker.trainer.kernels.replacement import Candidates, Rotate, replace_functions
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.failures import is_device_lost, is_out_of_memory

MANY_ROWS = 32_768  # LigerRMSNormFunction has another kernel for so many rows of a small width
# LigerRMSNormFunction: what is added to the weight, and where it casts to float32
NORM_VARIANTS = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"))


class FusedRMSNorm(RMSNorm):
    """LigerRMSNormFunction; like `RMSNorm` it keeps only its input for the backward."""

    def __init__(
        self, weight_K: torch.nn.Parameter, epsilon: float, *, offset: float, casting: str, apply: Any
    ) -> None:
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


def use_fused_modules(model: Any, dtype: torch.dtype, patches: Patches) -> tuple[dict[str, int], str]:
    """Replace functions of `model`, which computes in `dtype`. Returns the number of each kind, or why none."""
    try:
        ops = importlib.import_module("liger_kernel.ops")
        return replace_functions(model, dtype, _candidates(ops), patches), ""
    except ImportError as error:
        return {}, f"liger-kernel cannot be imported ({error})"
    except Exception as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return {}, f"a kernel of liger-kernel failed ({type(error).__name__}: {' '.join(str(error).split())})"


def _candidates(ops: Any) -> Candidates:
    norm = partial(FusedRMSNorm, apply=ops.LigerRMSNormFunction.apply)
    return Candidates(
        norms=tuple(partial(norm, offset=offset, casting=casting) for offset, casting in NORM_VARIANTS),
        products=(ops.LigerSiLUMulFunction.apply, ops.LigerGELUMulFunction.apply),
        rotary=partial(FusedRotary, apply=ops.LigerRopeFunction.apply),
        rows_of_narrow_norms=MANY_ROWS,
    )
