"""Attention with sinks (gpt-oss), exactly, by a kernel without sinks that returns the log-sum-exp of its scores.

A sink is one more score of each head, without a value (arXiv 2309.17453). Let S be the scores, l their log-sum-exp, s
the sink and L = log(exp l + exp s). The weights are P = exp(S - L) instead of exp(S - l), so the output is that of the
kernel times exp(l - L). The backward of flash attention computes P again from the log-sum-exp that it is given, and
the sum of P dP from the product of the output and its gradient: with L and the output with sinks it is exact.

Letters: H query heads, G key/value heads, T tokens of the batch, D per head.
"""

from __future__ import annotations

from typing import Any

import torch


def attention_with_sinks(
    query_T_H_D: torch.Tensor, key_T_G_D: torch.Tensor, value_T_G_D: torch.Tensor, sinks_H: torch.Tensor, kernel: Any
) -> torch.Tensor:
    """Return the kernel's attention with sinks (T x H x D). The sinks are frozen: they get no gradient.

    `kernel.forward` returns the output and the log-sum-exp (H x T, float32) of queries, keys and values;
    `kernel.backward` the gradients of these from that of the output, these, the output and the log-sum-exp.
    """
    out_T_H_D: torch.Tensor = _WithSinks.apply(query_T_H_D, key_T_G_D, value_T_G_D, sinks_H, kernel)  # type: ignore[no-untyped-call]
    return out_T_H_D


class _WithSinks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks_H: torch.Tensor, kernel: Any
    ) -> torch.Tensor:
        out_T_H_D: torch.Tensor
        out_T_H_D, lse_H_T = kernel.forward(query, key, value)
        with_sinks_H_T = torch.logaddexp(lse_H_T, sinks_H.to(lse_H_T.dtype).unsqueeze(1))
        out_T_H_D = (out_T_H_D * (lse_H_T - with_sinks_H_T).exp().t().unsqueeze(2)).to(query.dtype)
        ctx.kernel = kernel
        ctx.save_for_backward(query, key, value, out_T_H_D, with_sinks_H_T)
        return out_T_H_D

    @staticmethod
    def backward(ctx: Any, dout_T_H_D: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.kernel.backward(dout_T_H_D.contiguous(), *ctx.saved_tensors), None, None


class FlashAttention:
    """torch's flash attention of variable length, below torch.nn.attention.varlen, which may choose another kernel."""

    def __init__(self, starts: torch.Tensor, longest: int, scale: float | None, window: int | None) -> None:
        """`starts` (int32) has the start of each document, and the end."""
        self._documents = (starts, starts, longest, longest, 0.0, window is None)  # no dropout; causal or banded
        left = -1 if window is None else window - 1
        self._options = {"scale": scale, "window_size_left": left, "window_size_right": 0}

    def forward(self, *heads: torch.Tensor) -> Any:
        return torch.ops.aten._flash_attention_forward(*heads, *self._documents, False, **self._options)[:2]

    def backward(self, dout_T_H_D: torch.Tensor, *heads_out_lse: torch.Tensor) -> Any:
        random = torch.zeros(2, dtype=torch.uint64, device=dout_T_H_D.device), dout_T_H_D.new_empty(0)  # of dropout
        return torch.ops.aten._flash_attention_backward(
            dout_T_H_D, *heads_out_lse, *self._documents, *random, **self._options
        )
