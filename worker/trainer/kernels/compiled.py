"""Norms, gated products and rotary embeddings on CUDA, each compiled into one kernel by torch.compile.

A compiled function reads and writes the hidden states once, instead of in several element-wise passes. It keeps its
inputs for the backward, a norm also one float32 number for each row. Each is compared with the function whose place it
takes (replacement.py); what has no equal one stays as it is. The rotary function is the model's own, compiled.

`dynamic=True`: one compilation serves all lengths of a batch. Dynamo keeps eight variants of a function: a norm needs
three for each width (training, a first layer whose input has no gradient, validation), and one with a trained weight.

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

# What is added to the weight, and whether the product with it is in float32: Llama, Gemma, and norms of the latter kind
# whose weights begin at one.
NORM_VARIANTS = ((0.0, False), (1.0, True), (0.0, True))


@cache
def compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, dynamic=True)


class CompiledRMSNorm(RMSNorm):
    """A norm in one kernel, for inputs of `dtype`. The check of a base in float32 needs no compilation of its own."""

    def __init__(
        self, weight_K: torch.nn.Parameter, epsilon: float, *, offset: float, in_float32: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(weight_K, epsilon)
        self.offset, self.in_float32, self._dtype = offset, in_float32, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        compute = compiled(normalize) if x.dtype == self._dtype else normalize
        y: torch.Tensor = compute(self, x, self.weight)
        return y


def normalize(norm: CompiledRMSNorm, x: torch.Tensor, weight_K: torch.Tensor) -> torch.Tensor:
    """Return x over its root mean square, times the weight."""
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.epsilon)
    if norm.in_float32:
        return (normed * (weight_K.float() + norm.offset)).to(x.dtype)
    return normed.to(x.dtype) * (weight_K + norm.offset)


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
        norms=tuple(
            partial(CompiledRMSNorm, offset=offset, in_float32=in_float32, dtype=dtype)
            for offset, in_float32 in NORM_VARIANTS
        ),
        products=(compiled(swiglu), compiled(geglu)),
        rotary=compiled,
    )
