"""Norms, gated products and rotary embeddings on CUDA, each compiled into one kernel by torch.compile.

A compiled function reads and writes the hidden states once, instead of in several element-wise passes. It keeps its
inputs for the backward, a norm also one float32 number for each row. Each is compared with the function whose place it
takes (replacement.py); what has no equal one stays as it is. The rotary function is the model's own, compiled.

`dynamic=True`: one compilation serves all lengths of a batch. torch keeps eight variants of a function (with gradients
or without, one head or several), and computes further ones as they are: so each width of a norm has its own function.

Forward and backward are compiled together: an error of the compiler in a later variant leaves it as it is, with a
warning in the log (TORCHDYNAMO_SUPPRESS_ERRORS). torch would compile some backwards only when they run, which ends the
step.

Letters: T tokens, F the inner width, K the width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.kernels.modules import RMSNorm
from worker.trainer.kernels.replacement import Candidates, replace_functions
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.failures import is_device_lost, is_out_of_memory
from worker.trainer.runtime.records import Keepalive

Norm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
BACKEND: Any = "inductor"


def compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, dynamic=True, backend=_with_backward)


@cache
def compiled_norm(compute: Norm, _width: int) -> Norm:
    """Return the compiled function of one width. torch counts variants by code object, so each has a copy."""
    assert isinstance(compute, FunctionType)
    code = compute.__code__.replace()
    norm: Norm = compiled(FunctionType(code, compute.__globals__, compute.__name__, closure=compute.__closure__))
    return norm


def _with_backward(graph: Any, inputs: Any) -> Any:
    """Compile the graph and its backward. It runs in the thread that compiles, and settings of torch are of threads."""
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        return torch._dynamo.lookup_backend(BACKEND)(graph, inputs)


class CompiledRMSNorm(RMSNorm):
    """A norm in one kernel, for inputs of `dtype`. The check of a base in float32 needs no compilation of its own."""

    def __init__(self, weight_K: torch.nn.Parameter, epsilon: float, *, compute: Norm, dtype: torch.dtype) -> None:
        super().__init__(weight_K, epsilon)
        self._compute, self._dtype = compute, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        compute = compiled_norm(self._compute, x.shape[-1]) if x.dtype == self._dtype else self._compute
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


def use_compiled_functions(
    model: Any, dtype: torch.dtype, patches: Patches, keepalive: Keepalive
) -> tuple[dict[str, int], str]:
    """Replace functions of `model`, which computes in `dtype`. Returns the number of each kind, or why none."""
    try:
        candidates = Candidates(
            norms=tuple(partial(CompiledRMSNorm, compute=compute, dtype=dtype) for compute in (llama_norm, gemma_norm)),
            products=(compiled(swiglu), compiled(geglu)),
            rotary=compiled,
        )
        with torch._dynamo.config.patch(suppress_errors=False):
            return replace_functions(model, dtype, candidates, patches, keepalive), ""
    except Exception as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return {}, f"torch.compile failed ({type(error).__name__}: {' '.join(str(error).split())})"
