"""DPO (arXiv 2305.18290): how much more the adapter has come to like the preferred answer than the other.

    margin = beta * sum of (log p - log p_reference) over the preferred answer's tokens, minus the same over the other's
    loss   = -log sigmoid(margin)                                                 its "sigmoid" form, TRL's default

The loss of a pair is a function of one sum of token losses, so its gradient is that of a weighted sum of them: each
token of the preferred answer has the weight beta * sigmoid(-margin), each of the other minus that. With the weights
known, linear cross entropy forms the gradient as it does for supervised training, whose tokens weigh 1.

Letters: N labelled tokens of a batch, P pairs of a batch.
"""
# ruff: noqa: N815  shapes stand in names

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.data.batch import Pairs


@dataclass(frozen=True)
class PairLosses:
    """The pairs of one batch. Sums of many small differences: float64, but for the weights."""

    losses_P: torch.Tensor
    margins_P: torch.Tensor
    weights_N: torch.Tensor  # float32: d loss / d token loss, for every labelled token of the batch


@torch.no_grad()
def dpo_loss(pairs: Pairs, beta: float, losses_N: torch.Tensor, reference_N: torch.Tensor) -> PairLosses:
    """Compute the loss of each pair from the losses of its tokens with the adapter and with the reference (nats)."""
    log_ratio_N = (
        reference_N.double() - losses_N
    ) * pairs.sign_N  # log p - log p_reference is what the loss has fallen
    margins_P = beta * log_ratio_N.new_zeros(pairs.count).index_add_(0, pairs.pair_N, log_ratio_N)
    grad_weight_P = beta * torch.sigmoid(-margins_P)
    weights_N = grad_weight_P[pairs.pair_N] * pairs.sign_N
    return PairLosses(-F.logsigmoid(margins_P), margins_P, weights_N.float())
