"""DPO loss (arXiv 2305.18290), from the token losses with the adapter and with the reference.

    margin = beta * sum of (log p - log p_reference) over the preferred answer's tokens, minus the same over the other's
    loss   = -log sigmoid(margin)                                             the "sigmoid" form, TRL's default

The loss of a pair is a function of one signed sum of token losses, so its gradient is the gradient of a weighted sum:
each token of the preferred answer has the weight beta * sigmoid(-margin), each token of the other the negative of it.
Linear cross entropy takes these weights; in supervised training every weight is 1.

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
    """The losses of one batch's pairs. float64, because they sum many small differences; the weights are float32."""

    losses_P: torch.Tensor
    margins_P: torch.Tensor
    weights_N: torch.Tensor  # float32: d loss / d token loss of every labelled token


@torch.no_grad()
def dpo_loss(pairs: Pairs, beta: float, losses_N: torch.Tensor, reference_N: torch.Tensor) -> PairLosses:
    """Return the loss of each pair.

    `losses_N` and `reference_N` are the token losses (nats) with the adapter and with the reference.
    """
    log_ratio_N = reference_N.double() - losses_N  # log p - log p_reference: a loss is -log p
    signed_log_ratio_N = log_ratio_N * pairs.sign_N
    margins_P = beta * signed_log_ratio_N.new_zeros(pairs.count).index_add_(0, pairs.pair_N, signed_log_ratio_N)
    grad_weight_P = beta * torch.sigmoid(-margins_P)
    weights_N = grad_weight_P[pairs.pair_N] * pairs.sign_N
    return PairLosses(-F.logsigmoid(margins_P), margins_P, weights_N.float())
