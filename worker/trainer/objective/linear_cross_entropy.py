"""The last matrix product and the cross entropy, for labelled positions only, with the gradient formed in the forward.

A head is frozen mostly, so the only gradient is the hidden states': softmax minus one-hot, times the head. It is formed
while the logits of a chunk are at hand, and nothing of size N x V outlives its chunk. There is no product left for the
backward, and none at all for tokens that nobody learns from. A head that is trained (`modules_to_save`) comes as its
float32 master; its own gradient is summed over the chunks in float32, and costs one more product and V x D numbers.

Letters: N labelled tokens, M of one chunk, D the hidden size, V the vocabulary.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch

CHUNK_BYTES = 32 << 20  # of logits: 128 rows at V = 49,152, so that a chunk stays near the cache
LEAST_CHUNK_ROWS = 128
BYTES_PER_LOGIT = 6  # as the product leaves it (16 bits), and as float32


def linear_cross_entropy(
    hidden_N_D: torch.Tensor,
    head_V_D: torch.Tensor,
    targets_N: torch.Tensor,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of the losses (a float32 scalar, with its gradient), losses_N (float32, nats), is_correct_N (bool).

    Correct is a target that was the likeliest token. `weights_N` (float32, 1 where absent) weigh the sum and its
    gradient, not `losses_N`. A sum, not a mean: the one division is the optimizer step's.
    """
    if not torch.is_grad_enabled():  # `needs_input_grad` would still say that a trained head wants its V x D numbers
        hidden_N_D, head_V_D = hidden_N_D.detach(), head_V_D.detach()
    total, losses_N, is_correct_N = _LinearCrossEntropy.apply(hidden_N_D, head_V_D, targets_N, weights_N)  # type: ignore[no-untyped-call]
    return total, losses_N, is_correct_N


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_N_D: torch.Tensor,
        head_V_D: torch.Tensor,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        learns = any(ctx.needs_input_grad[:2])
        rows = max(LEAST_CHUNK_ROWS, CHUNK_BYTES // (BYTES_PER_LOGIT * head_V_D.shape[0]))
        ctx.head_gradient_V_D = torch.zeros_like(head_V_D) if ctx.needs_input_grad[1] else None
        head_V_D = head_V_D.to(hidden_N_D.dtype)
        parts = (torch.split(tensor, rows) for tensor in (hidden_N_D, targets_N))
        weights = repeat(None) if weights_N is None else torch.split(weights_N, rows)
        chunks = [
            _chunk(hidden_M_D, head_V_D, targets_M, weights_M, learns, ctx.head_gradient_V_D)
            for hidden_M_D, targets_M, weights_M in zip(*parts, weights, strict=False)
        ]
        losses_N, is_correct_N, gradient_N_D = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        ctx.save_for_backward(gradient_N_D)
        ctx.mark_non_differentiable(losses_N, is_correct_N)
        return (losses_N if weights_N is None else losses_N * weights_N).sum(), losses_N, is_correct_N

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient_N_D,) = ctx.saved_tensors
        head_gradient_V_D = None if ctx.head_gradient_V_D is None else ctx.head_gradient_V_D.mul_(scale)
        ctx.head_gradient_V_D = None  # what was returned becomes .grad; kept here it would outlive the row
        return gradient_N_D * scale.to(gradient_N_D.dtype), head_gradient_V_D, None, None


def _chunk(
    hidden_M_D: torch.Tensor,
    head_V_D: torch.Tensor,
    targets_M: torch.Tensor,
    weights_M: torch.Tensor | None,
    learns: bool,
    head_gradient_V_D: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return losses, which are correct, and the hidden states' gradient; add the head's, if it learns, to its buffer.

    One float32 buffer holds logits, then exponentials, then p - y.
    """
    z_M_V = (hidden_M_D @ head_V_D.t()).float()
    targets_M_1 = targets_M[:, None]
    target_M_1 = z_M_V.gather(1, targets_M_1)
    top_M_1 = z_M_V.amax(dim=1, keepdim=True)
    z_M_V.sub_(top_M_1).exp_()
    sum_M_1 = z_M_V.sum(dim=1, keepdim=True)
    losses_M = (sum_M_1.log() + top_M_1 - target_M_1).squeeze(1)
    is_correct_M = (target_M_1 == top_M_1).squeeze(1)
    if not learns:
        return losses_M, is_correct_M, hidden_M_D.new_empty(0, hidden_M_D.shape[1])
    z_M_V.div_(sum_M_1)
    z_M_V.scatter_add_(1, targets_M_1, z_M_V.new_full((len(targets_M), 1), -1.0))
    if weights_M is not None:
        z_M_V.mul_(weights_M[:, None])
    dz_M_V = z_M_V.to(hidden_M_D.dtype)
    if head_gradient_V_D is not None:
        head_gradient_V_D.add_(dz_M_V.t() @ hidden_M_D)
    return losses_M, is_correct_M, dz_M_V @ head_V_D
