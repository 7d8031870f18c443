"""DPO (arXiv 2305.18290): how much more the adapter has come to like the preferred answer than the other.

    margin = beta * sum of (log p - log p_reference) over the preferred answer's tokens, minus the same over the other's
    loss   = -log sigmoid(margin)                                                 its "sigmoid" form, TRL's default

The loss of a pair is a function of one sum of token losses, so its gradient is that of a weighted sum of them: each
token of the preferred answer has the weight beta * sigmoid(-margin), each of the other minus that. With the weights
known, the one head forms the gradient as it does for supervised runs, whose tokens weigh 1.

The reference is the model with the adapter off; for a run that goes on from an adapter, with that one.

Letters: N labelled tokens of a row, P pairs of a row, D the hidden size.
"""
# ruff: noqa: N815  shapes stand in names

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.batch import Pairs, Row
from worker.trainer.loss import head_loss
from worker.trainer.model import Base, hidden_states


@dataclass(frozen=True)
class Comparison:
    """The pairs of one row. Sums of many small differences: float64, but for the weights."""

    losses_P: torch.Tensor
    margins_P: torch.Tensor
    weights_N: torch.Tensor  # float32; of every labelled token in the row


@torch.no_grad()
def reference_losses(base: Base, row: Row) -> torch.Tensor | None:
    """The reference's losses_N (float32, nats); None for a row without pairs."""
    if row.pairs is None:
        return None
    reference = row.as_reference(base.routing.adapters)
    hidden_N_D = hidden_states(base, reference).index_select(0, row.predictors_N)
    return head_loss(hidden_N_D, base.head_of(reference), row.targets_N)[1]


@torch.no_grad()
def compare(base: Base, row: Row, hidden_N_D: torch.Tensor, reference_N: torch.Tensor | None) -> Comparison | None:
    """Hold the row's pairs against the reference, without a gradient; None for a row without pairs."""
    if row.pairs is None or reference_N is None:
        return None
    losses_N = head_loss(hidden_N_D.detach(), base.head_of(row), row.targets_N)[1]  # attached: a gradient, too
    return compare_losses(row.pairs, losses_N, reference_N)


def compare_losses(pairs: Pairs, losses_N: torch.Tensor, reference_N: torch.Tensor) -> Comparison:
    """The maths alone: from each token's loss with the adapter and without it."""
    gained_N = (reference_N.double() - losses_N) * pairs.signs_N  # log p - log p_reference is what the loss has fallen
    count = len(pairs.betas_P)
    sums_P = gained_N.new_zeros(count + 1).index_add_(0, pairs.pairs_N, gained_N)[:count]  # the last: of no pair
    margins_P = pairs.betas_P * sums_P
    slopes_P = pairs.betas_P * torch.sigmoid(-margins_P)
    weights_N = torch.cat([slopes_P, slopes_P.new_ones(1)])[pairs.pairs_N] * pairs.signs_N
    return Comparison(-F.logsigmoid(margins_P), margins_P, weights_N.float())
