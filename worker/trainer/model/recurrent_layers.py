"""Layers that carry state from token to token, over packed documents: Gated DeltaNet (arXiv 2412.06464), convolutions.

The functions of transformers compute one document; their state would run from each document into the next. These take
their place in the modeling module of the base model, for all models of this architecture in this process:

- the causal convolution gets zeros between the documents, as many as its kernel reaches back;
- the gated delta rule starts every document with an empty state. On CUDA in 16 bits one call of flash-linear-attention
  (an optional extra) computes all documents, otherwise transformers' own form one document after the other.

Everything else in these layers (projections, norms, gates) is computed for all documents together.

Letters: T tokens of all documents, C channels, L tokens with the gaps.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from worker.trainer.model.attention.attention import document_starts
from worker.trainer.model.patches import DOCUMENTS

PACKAGE = "fla"  # flash-linear-attention
CONVOLUTION, DELTA_RULE = "causal_conv1d_fn", "torch_chunk_gated_delta_rule"  # of the modeling modules of transformers


class _Packed:
    """Takes the place of a function of transformers: the one of an optional package if it is installed, on CUDA."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self._reference: Callable[..., Any] = getattr(original, "__wrapped__", original)


class PackedConvolution(_Packed):
    """transformers' causal convolution, within documents of `document_lengths` tokens; the package is causal-conv1d."""

    def __call__(
        self,
        x_1_C_T: torch.Tensor,
        weight_C_K: torch.Tensor,
        *arguments: Any,
        document_lengths: tuple[int, ...] = (),
        **options: Any,
    ) -> torch.Tensor:
        convolve: Callable[..., torch.Tensor] = self._reference if x_1_C_T.is_cpu else self._original
        if len(document_lengths) < 2:
            return convolve(x_1_C_T, weight_C_K, *arguments, **options)
        places_T = _places_between_gaps(document_lengths, weight_C_K.shape[-1] - 1, x_1_C_T.device)
        size = x_1_C_T.shape[-1] + (len(document_lengths) - 1) * (weight_C_K.shape[-1] - 1)
        x_1_C_L = x_1_C_T.new_zeros(*x_1_C_T.shape[:-1], size).index_copy(-1, places_T, x_1_C_T)
        return convolve(x_1_C_L, weight_C_K, *arguments, **options).index_select(-1, places_T)


class PackedDeltaRule(_Packed):
    """transformers' gated delta rule, within documents of `document_lengths` tokens. Returns (output, final state)."""

    def __init__(self, original: Callable[..., Any]) -> None:
        super().__init__(original)
        self.is_fused = importlib.util.find_spec(PACKAGE) is not None

    def __call__(
        self, query: torch.Tensor, *others: torch.Tensor, document_lengths: tuple[int, ...] = (), **options: Any
    ) -> Any:
        """`query` and `others` (keys, values) have the shape 1 x T x heads x size; `g` and `beta` 1 x T x heads."""
        if self.is_fused and supports_fused(query):
            if document_lengths:
                options["cu_seqlens"] = document_starts(document_lengths, query.device)
            return self._original(query, *others, **options)
        if len(document_lengths) < 2:
            return self._reference(query, *others, **options)
        lengths = list(document_lengths)
        gates = [torch.split(options.pop(name), lengths, dim=1) for name in ("g", "beta")]
        heads = [torch.split(each, lengths, dim=1) for each in (query, *others)]
        outputs = [
            self._reference(*part, g=g, beta=beta, **options)[0] for *part, g, beta in zip(*heads, *gates, strict=True)
        ]
        return torch.cat(outputs, dim=1), None


def supports_fused(query: torch.Tensor) -> bool:
    """Return whether flash-linear-attention computes this input: it refuses float32, and runs on CUDA alone."""
    return not query.is_cpu and query.dtype in (torch.bfloat16, torch.float16)


def pack_recurrent_layers(model: Any) -> None:
    """Replace the functions of the model's modeling modules; those that are replaced already stay."""
    for module in _modeling_modules(model):
        for name, replacement in ((CONVOLUTION, PackedConvolution), (DELTA_RULE, PackedDeltaRule)):
            original = getattr(module, name, None)
            if callable(original) and not isinstance(original, replacement):
                DOCUMENTS.put_attribute(module, name, replacement(original))


def fused_rules(model: Any) -> list[PackedDeltaRule]:
    """Return the delta rules of the model that may call flash-linear-attention."""
    rules = (getattr(module, DELTA_RULE, None) for module in _modeling_modules(model))
    return [rule for rule in rules if isinstance(rule, PackedDeltaRule) and rule.is_fused]


def _modeling_modules(model: Any) -> set[Any]:
    return {sys.modules[type(module).__module__] for module in model.modules()}


@lru_cache(maxsize=8)
def _places_between_gaps(lengths: tuple[int, ...], gap: int, device: torch.device) -> torch.Tensor:
    """Return the place of each token (T) if `gap` places are left between the documents."""
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (torch.arange(sum(lengths)) + gap * document_T).to(device)
