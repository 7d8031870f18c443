"""Attention with capped scores (Gemma 2), which no kernel of torch has, with sinks (gpt-oss) and sliding windows.

The softmax is computed in float32 for QUERIES tokens at a time, and again in the backward, so memory grows with the
length of a document and not with its square.

Letters: H query heads, G key/value heads, S tokens of one document, D per head of queries and keys, E per head of
values, M queries of a chunk, L keys that they attend to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

QUERIES = 256


@dataclass(frozen=True)
class ScoreOptions:
    """What happens to the scores (query times key) before and in the softmax."""

    scale: float
    window: int | None = None  # a token attends to at most so many tokens, itself included
    cap: float | None = None  # scores become cap * tanh(score / cap) (arXiv 2408.00118, section 2)
    sinks_H: torch.Tensor | None = None  # noqa: N815  one more score for each head, which has no value (arXiv 2309.17453)


def explicit_attention(
    query_H_S_D: torch.Tensor, key_G_S_D: torch.Tensor, value_G_S_E: torch.Tensor, options: ScoreOptions
) -> torch.Tensor:
    """Return causal attention within one document (H x S x E), in the dtype of the values."""
    copies = query_H_S_D.shape[0] // key_G_S_D.shape[0]
    key_H_S_D, value_H_S_E = (tensor.repeat_interleave(copies, dim=0) for tensor in (key_G_S_D, value_G_S_E))
    out_H_S_E: torch.Tensor = _Chunked.apply(query_H_S_D, key_H_S_D, value_H_S_E, options)  # type: ignore[no-untyped-call]
    return out_H_S_E


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_H_S_D: torch.Tensor, key_H_S_D: torch.Tensor, value_H_S_E: torch.Tensor, options: ScoreOptions
    ) -> torch.Tensor:
        ctx.options = options
        ctx.save_for_backward(query_H_S_D, key_H_S_D, value_H_S_E)
        chunks = _chunks(query_H_S_D.shape[1], options.window)
        outs_H_M_E = [_attend(query_H_S_D[:, q], key_H_S_D[:, k], value_H_S_E[:, k], q, k, options) for q, k in chunks]
        return torch.cat(outs_H_M_E, dim=1)

    @staticmethod
    def backward(ctx: Any, dout_H_S_E: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_H_S_D, key_H_S_D, value_H_S_E = ctx.saved_tensors
        gradients = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in ctx.saved_tensors]
        for q, k in _chunks(query_H_S_D.shape[1], ctx.options.window):
            parts = (query_H_S_D[:, q], key_H_S_D[:, k], value_H_S_E[:, k])
            inputs = query, key, value = [part.detach().requires_grad_() for part in parts]
            with torch.enable_grad():
                out_H_M_E = _attend(query, key, value, q, k, ctx.options)
            of_chunk = torch.autograd.grad(out_H_M_E, inputs, dout_H_S_E[:, q])
            for gradient, part, at in zip(gradients, of_chunk, (q, k, k), strict=True):
                gradient[:, at] += part
        return *(gradient.to(query_H_S_D.dtype) for gradient in gradients), None


def _chunks(length: int, window: int | None) -> list[tuple[slice, slice]]:
    """Return the queries of each chunk, and the keys that they attend to."""
    starts = range(0, length, QUERIES)
    first_key = [0 if window is None else max(0, start - window + 1) for start in starts]
    ends = [min(start + QUERIES, length) for start in starts]
    return [(slice(start, end), slice(key, end)) for start, key, end in zip(starts, first_key, ends, strict=True)]


def _attend(
    query_H_M_D: torch.Tensor,
    key_H_L_D: torch.Tensor,
    value_H_L_E: torch.Tensor,
    queries: slice,
    keys: slice,
    options: ScoreOptions,
) -> torch.Tensor:
    scores_H_M_L = (query_H_M_D @ key_H_L_D.transpose(1, 2)).float() * options.scale
    if options.cap is not None:
        scores_H_M_L = options.cap * torch.tanh(scores_H_M_L / options.cap)
    positions = [torch.arange(each.start, each.stop, device=query_H_M_D.device) for each in (queries, keys)]
    distance_M_L = positions[0][:, None] - positions[1][None, :]
    hidden_M_L = distance_M_L < 0 if options.window is None else (distance_M_L < 0) | (distance_M_L >= options.window)
    scores_H_M_L = scores_H_M_L.masked_fill(hidden_M_L, -torch.inf)
    if options.sinks_H is not None:
        sinks_H_M_1 = options.sinks_H.float()[:, None, None].expand(-1, scores_H_M_L.shape[1], 1)
        scores_H_M_L = torch.cat([scores_H_M_L, sinks_H_M_1], dim=2)
    weights_H_M_L = torch.softmax(scores_H_M_L, dim=2)[:, :, : key_H_L_D.shape[1]]
    return weights_H_M_L.to(value_H_L_E.dtype) @ value_H_L_E
