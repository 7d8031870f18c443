"""Attention with sinks (gpt-oss), exactly, by a kernel without sinks that returns the log-sum-exp of its scores.

A sink is one more score of each head, without a value (arXiv 2309.17453). Let S be the scores, l their log-sum-exp, s
the sink and L = log(exp l + exp s). The weights are P = exp(S - L) instead of exp(S - l), so the output is that of the
kernel times exp(l - L). The backward of flash attention computes P again from the log-sum-exp that it is given, and
the sum of P dP from the product of the output and its gradient: with L and the output with sinks it is exact.

Letters: H query heads, G key/value heads, T tokens of the batch, D per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


class LogSumExpKernel(Protocol):
    def forward(self, *heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output (T x H x D) and the log-sum-exp (H x T, float32) of queries, keys and values."""

    def backward(
        self, dout_T_H_D: torch.Tensor, *heads_out_lse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of queries, keys and values; given are these, the output and the log-sum-exp."""


def attention_with_sinks(
    query_T_H_D: torch.Tensor,
    key_T_G_D: torch.Tensor,
    value_T_G_D: torch.Tensor,
    sinks_H: torch.Tensor,
    kernel: LogSumExpKernel,
) -> torch.Tensor:
    """Return the kernel's attention with sinks (T x H x D). The sinks are frozen: they get no gradient."""
    out_T_H_D: torch.Tensor = _WithSinks.apply(query_T_H_D, key_T_G_D, value_T_G_D, sinks_H, kernel)  # type: ignore[no-untyped-call]
    return out_T_H_D


class _WithSinks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_T_H_D: torch.Tensor,
        key_T_G_D: torch.Tensor,
        value_T_G_D: torch.Tensor,
        sinks_H: torch.Tensor,
        kernel: LogSumExpKernel,
    ) -> torch.Tensor:
        out_T_H_D, lse_H_T = kernel.forward(query_T_H_D, key_T_G_D, value_T_G_D)
        with_sinks_H_T = torch.logaddexp(lse_H_T, sinks_H.to(lse_H_T.dtype).unsqueeze(1))
        factor_T_H_1 = (lse_H_T - with_sinks_H_T).exp().t().unsqueeze(2)
        out_T_H_D = (out_T_H_D * factor_T_H_1).to(query_T_H_D.dtype)
        ctx.kernel = kernel
        ctx.save_for_backward(query_T_H_D, key_T_G_D, value_T_G_D, out_T_H_D, with_sinks_H_T)
        return out_T_H_D

    @staticmethod
    def backward(ctx: Any, dout_T_H_D: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.kernel.backward(dout_T_H_D.contiguous(), *ctx.saved_tensors), None, None


@dataclass(frozen=True)
class FlashAttention:
    """torch's flash attention of variable length, below torch.nn.attention.varlen, which may choose another kernel."""

    starts: torch.Tensor  # int32: of each document, and the end
    longest: int
    scale: float | None
    window: int | None

    def forward(self, *heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.ops.aten._flash_attention_forward(*heads, *self._documents, False, **self._options)
        out_T_H_D, lse_H_T = found[:2]
        return out_T_H_D, lse_H_T

    def backward(
        self, dout_T_H_D: torch.Tensor, *heads_out_lse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        random = torch.zeros(2, dtype=torch.uint64, device=dout_T_H_D.device)  # of dropout, which there is none of
        dquery_T_H_D, dkey_T_G_D, dvalue_T_G_D = torch.ops.aten._flash_attention_backward(
            dout_T_H_D, *heads_out_lse, *self._documents, random, dout_T_H_D.new_empty(0), **self._options
        )
        return dquery_T_H_D, dkey_T_G_D, dvalue_T_G_D

    @property
    def _documents(self) -> tuple[torch.Tensor, torch.Tensor, int, int, float, bool]:
        """Return the documents of queries and of keys, the rate of dropout, and whether attention is causal."""
        return self.starts, self.starts, self.longest, self.longest, 0.0, self.window is None

    @property
    def _options(self) -> dict[str, Any]:
        left = -1 if self.window is None else self.window - 1
        return {"scale": self.scale, "window_size_left": left, "window_size_right": 0}
