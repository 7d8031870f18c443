"""Compares two functions of the same random numbers: their outputs, and the gradients of these by each input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Function = Callable[..., Any]  # of tensors; returns a tensor, or several


def random_tensors(
    shapes: Sequence[Sequence[int]], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> list[torch.Tensor]:
    """Return normal values, drawn on the CPU, so that they are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator).to(device, dtype) for shape in shapes]


def run_with_gradients(
    function: Function, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """Return the outputs, and the gradients of a weighted sum of them by each input. Without weights: by fixed ones."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        result = function(*leaves)
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        if weights is None:
            weights = random_tensors([output.shape for output in outputs], outputs[0].device, outputs[0].dtype, seed=1)
        copies = [output.detach().clone() for output in outputs]  # a kernel may write into its output in the backward
        return [*copies, *torch.autograd.grad(outputs, leaves, weights)]


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest difference of two tensors, relative to the largest expected value; inf if it is no number."""
    pairs = [(one.float(), two.float()) for one, two in zip(found, expected, strict=True)]
    parts = [float((one - two).abs().max() / two.abs().max()) for one, two in pairs]
    return max(part if math.isfinite(part) else math.inf for part in parts)
