"""Fused linear cross entropy: the head's matrix product and the cross entropy, in chunks of labelled tokens.

The forward of linear cross entropy computes the gradient, too, as in Liger Kernel and torchtune. The head is usually
frozen, so the only gradient is that of the hidden states: softmax minus one-hot, times the head. It is computed while
the logits of a chunk are in memory, so no tensor of N x V is ever allocated and the backward has no product left.
Unlabelled tokens cost nothing. A trained head (`modules_to_save`) is passed as its float32 master; its gradient is
summed over the chunks in float32, which takes one more product and V x D numbers.

Each token has a weight (sequence_losses.py); in supervised training every weight is 1.

Letters: N labelled tokens of a batch, M labelled tokens of one chunk, D the hidden size, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch

from app.domain.planning.memory import MIN_CHUNK_TOKENS


@dataclass(frozen=True)
class LogitScaling:
    """How a model computes logits from the product z of hidden state and head: factor * z, then cap * tanh(z / cap).

    Granite and Cohere have a factor, Gemma 2 to 4 a cap (arXiv 2408.00118, section 2).
    """

    factor: float = 1.0
    cap: float | None = None

    def apply_(self, z: torch.Tensor) -> torch.Tensor:
        """Scale and cap z in place."""
        if self.factor != 1:
            z.mul_(self.factor)
        return z if self.cap is None else z.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Return the derivative of the logits with respect to z, from the logits."""
        return self.factor if self.cap is None else (1 - (logits / self.cap).square()).mul_(self.factor)


UNSCALED = LogitScaling()


def linear_cross_entropy(
    hidden_N_D: torch.Tensor,
    head_V_D: torch.Tensor,
    targets_N: torch.Tensor,
    weights_N: torch.Tensor | None = None,
    scaling: LogitScaling = UNSCALED,
    chunk_tokens: int = MIN_CHUNK_TOKENS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sum of the losses (a float32 scalar with a gradient), losses_N (float32, nats), is_correct_N (bool).

    `is_correct_N` is true where the target is the most likely token. `weights_N` (float32; default 1) multiply the
    terms of the sum and of its gradient, but not `losses_N`. The optimizer step divides the sum, once.
    """
    if not torch.is_grad_enabled():  # `needs_input_grad` is true for a trained head even then: V x D unused numbers
        hidden_N_D, head_V_D = hidden_N_D.detach(), head_V_D.detach()
    total, losses_N, is_correct_N = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_N_D, head_V_D, targets_N, weights_N, scaling, chunk_tokens
    )
    return total, losses_N, is_correct_N


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_N_D: torch.Tensor,
        head_V_D: torch.Tensor,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor | None,
        scaling: LogitScaling,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        needs_gradient = any(ctx.needs_input_grad[:2])
        ctx.head_gradient_V_D = torch.zeros_like(head_V_D) if ctx.needs_input_grad[1] else None
        head_V_D = head_V_D.to(hidden_N_D.dtype)
        chunks = (torch.split(tensor, chunk_tokens) for tensor in (hidden_N_D, targets_N))
        weights = repeat(None) if weights_N is None else torch.split(weights_N, chunk_tokens)
        results = [
            _chunk(hidden_M_D, head_V_D, targets_M, weights_M, scaling, needs_gradient, ctx.head_gradient_V_D)
            for hidden_M_D, targets_M, weights_M in zip(*chunks, weights, strict=False)
        ]
        losses_N, is_correct_N, gradient_N_D = (torch.cat(parts) for parts in zip(*results, strict=True))
        ctx.save_for_backward(gradient_N_D)
        ctx.mark_non_differentiable(losses_N, is_correct_N)
        return (losses_N if weights_N is None else losses_N * weights_N).sum(), losses_N, is_correct_N

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient_N_D,) = ctx.saved_tensors
        head_gradient_V_D = None if ctx.head_gradient_V_D is None else ctx.head_gradient_V_D.mul_(scale)
        ctx.head_gradient_V_D = None  # the returned tensor becomes .grad; a reference here would outlive the batch
        return gradient_N_D * scale.to(gradient_N_D.dtype), head_gradient_V_D, None, None, None, None


def _chunk(
    hidden_M_D: torch.Tensor,
    head_V_D: torch.Tensor,
    targets_M: torch.Tensor,
    weights_M: torch.Tensor | None,
    scaling: LogitScaling,
    needs_gradient: bool,
    head_gradient_V_D: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return losses_M, is_correct_M and the gradient of the hidden states (M x D); add the gradient of a trained head.

    One float32 buffer (M x V) holds the logits, then their exponentials, then p - y.
    """
    z_M_V = scaling.apply_((hidden_M_D @ head_V_D.t()).float())
    slope = scaling.slope(z_M_V) if needs_gradient and scaling != UNSCALED else None
    targets_M_1 = targets_M[:, None]
    target_M_1 = z_M_V.gather(1, targets_M_1)
    top_M_1 = z_M_V.amax(dim=1, keepdim=True)
    z_M_V.sub_(top_M_1).exp_()
    sum_M_1 = z_M_V.sum(dim=1, keepdim=True)
    losses_M = (sum_M_1.log() + top_M_1 - target_M_1).squeeze(1)
    is_correct_M = (target_M_1 == top_M_1).squeeze(1)
    if not needs_gradient:
        return losses_M, is_correct_M, hidden_M_D.new_empty(0, hidden_M_D.shape[1])
    z_M_V.div_(sum_M_1)
    z_M_V.scatter_add_(1, targets_M_1, z_M_V.new_full((len(targets_M), 1), -1.0))
    if weights_M is not None:
        z_M_V.mul_(weights_M[:, None])
    if slope is not None:
        z_M_V.mul_(slope)
    dz_M_V = z_M_V.to(hidden_M_D.dtype)
    if head_gradient_V_D is not None:
        head_gradient_V_D.add_(dz_M_V.t() @ hidden_M_D)
    return losses_M, is_correct_M, dz_M_V @ head_V_D
