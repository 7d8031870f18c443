"""Norms, gated products and rotary embeddings of a model, replaced by functions that have the same results.

A candidate takes a place only if it has the same outputs and the same gradients on a few random tokens, in the compute
dtype and on the device, within rounding; otherwise transformers' own function stays, which is slower or keeps more.

Letters: T tokens, H heads, D per head, K the width, F the inner width.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from app.domain.planning.memory import GATED_MLP_LAYERS
from worker.trainer.kernels.comparison import Function, difference, random_tensors, run_with_gradients
from worker.trainer.kernels.modules import GatedMLP, Product, RMSNorm, swiglu
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.records import Keepalive

ROTARY_FUNCTION = "apply_rotary_pos_emb"  # of the modeling modules of transformers
COMPARED_TOKENS, COMPARED_WIDTH = 4, 128
COMPARED_HEADS, COMPARED_HEAD_SIZE = 2, 64
# Of the largest value. Two orders of the same operations differ by up to one epsilon of 16 bits, and 3e-7 in float32.
MAX_EPSILONS, MIN_TOLERANCE = 2, 1e-5
COMPARING = "compiling and comparing kernels"
NARROW = 256  # up to this width a norm is one of queries or keys, with a row for every head

Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Candidates:
    """Functions that may take the place of a model's own, the preferred ones first."""

    norms: tuple[Callable[[torch.nn.Parameter, float], RMSNorm], ...]  # from weight and epsilon
    products: tuple[Product, ...]
    rotary: Callable[[Rotate], Rotate] | None = None  # from the replaced function


MEMORY_EFFICIENT = Candidates(norms=(RMSNorm,), products=(swiglu,))


@torch.no_grad()
def replace_functions(
    model: Any, dtype: torch.dtype, candidates: Candidates, patches: Patches, keepalive: Keepalive
) -> dict[str, int]:
    """Replace functions of `model`, which computes in `dtype`. Returns the number of each kind.

    The rotary function is replaced in its module, so for every model of this architecture in this process. All
    candidates run before the first replacement, so an error of one of them leaves the model as it is.
    """
    modules = list(_equal_modules(model, dtype, candidates, keepalive))
    keepalive(COMPARING)
    rotary = list(_equal_rotary(model, dtype, candidates.rotary)) if candidates.rotary else []
    for name, _, replacement in modules:
        patches.put_module(model, name, replacement)
    for module, rotate in rotary:
        patches.put_attribute(module, ROTARY_FUNCTION, rotate)
    return dict(Counter([kind for _, kind, _ in modules] + ["rotary embeddings"] * len(rotary)))


def _equal_modules(
    model: Any, dtype: torch.dtype, candidates: Candidates, keepalive: Keepalive
) -> Iterator[tuple[str, str, torch.nn.Module]]:
    """Yield name, kind and replacement of each module that has an equal one."""
    for name, module in model.named_modules():
        keepalive(COMPARING)
        if parameters := _norm_parameters(module):
            norms = (make(*parameters) for make in candidates.norms)
            if norm := next((each for each in norms if _is_equal_norm(each, module, dtype)), None):
                yield name, "norms", norm
        elif sorted(child for child, _ in module.named_children() if child != "act_fn") == sorted(GATED_MLP_LAYERS):
            gate, up, down = (getattr(module, layer) for layer in GATED_MLP_LAYERS)
            inputs = random_tensors([(COMPARED_TOKENS, COMPARED_WIDTH)] * 2, next(model.parameters()).device, dtype)
            original = _product_of(module)
            for product in candidates.products:
                if _are_equal(product, original, inputs):
                    yield name, "gated MLPs", GatedMLP(gate, up, down, product)
                    break


def _norm_parameters(module: torch.nn.Module) -> tuple[torch.nn.Parameter, float] | None:
    """Return weight and epsilon of an RMS norm; None for another module."""
    names = ("variance_epsilon", "eps", "epsilon")
    epsilon = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    weight = getattr(module, "weight", None)
    if type(module).__name__.endswith("RMSNorm") and epsilon is not None and weight is not None and weight.ndim == 1:
        return weight, epsilon
    return None


def _is_equal_norm(norm: RMSNorm, module: torch.nn.Module, dtype: torch.dtype) -> bool:
    """Compare with a weight that gets a gradient, and as it is, for which a norm may have another kernel."""
    weight_K = norm.weight
    heads = (COMPARED_HEADS,) if weight_K.numel() <= NARROW else ()
    (x,) = random_tensors([(1, COMPARED_TOKENS, *heads, weight_K.numel())], weight_K.device, dtype)
    of_norm, of_module = (
        lambda x, weight_K, each=each: functional_call(each, {"weight": weight_K}, (x,)) for each in (norm, module)
    )
    return _are_equal(of_norm, of_module, [x, weight_K]) and _are_equal(norm, module, [x])


def _product_of(module: torch.nn.Module) -> Product:
    """Return the function by which a gated MLP combines gate and up: its own forward without the projections."""

    def product(gate_T_F: torch.Tensor, up_T_F: torch.Tensor) -> torch.Tensor:
        values = (lambda _: gate_T_F), (lambda _: up_T_F), torch.nn.Identity()
        with Patches() as patches:
            for name, value in zip(GATED_MLP_LAYERS, values, strict=True):
                patches.put_module(module, name, value)
            inner_T_F: torch.Tensor = module(gate_T_F)
        return inner_T_F

    return product


def _equal_rotary(
    model: Any, dtype: torch.dtype, replacement_of: Callable[[Rotate], Rotate]
) -> Iterator[tuple[Any, Rotate]]:
    """Yield the model's modeling modules with an equal replacement of their rotary function."""
    heads = random_tensors(
        [(1, COMPARED_HEADS, COMPARED_TOKENS, COMPARED_HEAD_SIZE)] * 2, next(model.parameters()).device, dtype
    )
    angle = torch.rand(1, COMPARED_TOKENS, COMPARED_HEAD_SIZE // 2, generator=torch.Generator().manual_seed(0))
    cos, sin = (each.repeat(1, 1, 2).to(heads[0]) for each in (angle.cos(), angle.sin()))
    for module in {sys.modules[type(module).__module__] for module in model.modules()}:
        original = getattr(module, ROTARY_FUNCTION, None)
        if not callable(original):
            continue
        try:
            original(*heads, cos, sin)
        except (TypeError, RuntimeError):  # another signature, or other shapes of cos and sin
            continue
        rotate = replacement_of(original)
        of_rotate, of_original = (
            lambda query, key, each=each: each(query, key, cos, sin) for each in (rotate, original)
        )
        if _are_equal(of_rotate, of_original, heads):
            yield module, rotate


def _are_equal(candidate: Function, original: Function, inputs: Sequence[torch.Tensor]) -> bool:
    """Return whether both have the same outputs and the same gradients of all inputs, within rounding."""
    tolerance = max(MIN_TOLERANCE, MAX_EPSILONS * torch.finfo(inputs[0].dtype).eps)
    found, expected = (run_with_gradients(function, inputs) for function in (candidate, original))
    return difference(found, expected) <= tolerance
