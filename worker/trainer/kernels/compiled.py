"""Norms, gated products and rotary embeddings on CUDA, each compiled into one kernel by torch.compile.

A compiled function reads and writes the hidden states once, instead of in several element-wise passes. It keeps its
inputs for the backward, a norm also one float32 number for each row. Each is compared with the function whose place it
takes (replacement.py); what has no equal one stays as it is. The rotary function is the model's own, compiled.

`dynamic=True`: one compilation serves all lengths of a batch. torch keeps eight variants of a function, and computes
further ones as they are: Qwen3, whose norms have two widths, needs seven, and Gemma with one key head about ten. Those
of training are made first, in the check of the base.

Letters: T tokens, F the inner width, K the width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.kernels.modules import RMSNorm
from worker.trainer.kernels.replacement import Candidates, replace_functions
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.failures import is_device_lost, is_out_of_memory

Norm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@cache
def compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, dynamic=True)


class CompiledRMSNorm(RMSNorm):
    """A norm in one kernel, for inputs of `dtype`. The check of a base in float32 needs no compilation of its own."""

    def __init__(self, weight_K: torch.nn.Parameter, epsilon: float, *, compute: Norm, dtype: torch.dtype) -> None:
        super().__init__(weight_K, epsilon)
        self._compute, self._dtype = compute, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        compute: Norm = compiled(self._compute) if x.dtype == self._dtype else self._compute
        return compute(x, self.weight, self.epsilon)


def llama_norm(x: torch.Tensor, weight_K: torch.Tensor, epsilon: float) -> torch.Tensor:
    return _normed(x, epsilon).to(x.dtype) * weight_K


def gemma_norm(x: torch.Tensor, weight_K: torch.Tensor, epsilon: float) -> torch.Tensor:
    return (_normed(x, epsilon) * (1 + weight_K.float())).to(x.dtype)


def _normed(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)


def swiglu(gate_T_F: torch.Tensor, up_T_F: torch.Tensor) -> torch.Tensor:
    return F.silu(gate_T_F) * up_T_F


def geglu(gate_T_F: torch.Tensor, up_T_F: torch.Tensor) -> torch.Tensor:
    return F.gelu(gate_T_F, approximate="tanh") * up_T_F


def use_compiled_functions(model: Any, dtype: torch.dtype, patches: Patches) -> tuple[dict[str, int], str]:
    """Replace functions of `model`, which computes in `dtype`. Returns the number of each kind, or why none."""
    try:
        # Later an error of the compiler leaves a function as it is (TORCHDYNAMO_SUPPRESS_ERRORS).
        with torch._dynamo.config.patch(suppress_errors=False):
            return replace_functions(model, dtype, _candidates(dtype), patches), ""
    except Exception as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return {}, f"torch.compile failed ({type(error).__name__}: {' '.join(str(error).split())})"


def _candidates(dtype: torch.dtype) -> Candidates:
    return Candidates(
        norms=tuple(partial(CompiledRMSNorm, compute=compute, dtype=dtype) for compute in (llama_norm, gemma_norm)),
        products=(compiled(swiglu), compiled(geglu)),
        rotary=compiled,
    )
