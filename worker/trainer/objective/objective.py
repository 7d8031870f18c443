"""The objectives: `SupervisedObjective` and `DpoObjective`, chosen once before the first step.

An objective runs forward and backward of one packed batch (training), or the forward alone (validation). Losses and
gradients are sums, so they can be added over batches of any size; the optimizer step divides them, once.

Letters: T tokens of a batch, N labelled tokens of a batch, D the hidden size.
"""

from __future__ import annotations

from typing import Protocol

import torch

from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.data.batch import PackedBatch, Pairs
from worker.trainer.model.base_model import FrozenBase, hidden_states
from worker.trainer.objective.losses import dpo_loss, linear_cross_entropy
from worker.trainer.objective.metrics import BatchSums


class Objective(Protocol):
    @property
    def base(self) -> FrozenBase: ...

    def forward_backward(self, batch: PackedBatch, loss_scale: float = 1.0) -> BatchSums:
        """Run forward and backward of one batch, and add its gradients times `loss_scale` to those of the adapter."""

    def evaluate(self, batch: PackedBatch) -> BatchSums:
        """Run the forward of one batch without dropout and gradients."""


class SupervisedObjective:
    """Cross entropy of every labelled token."""

    def __init__(self, base: FrozenBase, adapter: LoraAdapter) -> None:
        self.base = base
        self._adapter = adapter

    def forward_backward(self, batch: PackedBatch, loss_scale: float = 1.0) -> BatchSums:
        hidden_N_D = _hidden_states(self.base, batch, self._adapter)  # W x + scale * B A x in every adapted layer
        head_V_D = self.base.head_with(self._adapter)
        loss_sum, losses_N, is_correct_N = _cross_entropy(self.base, hidden_N_D, head_V_D, batch)
        (loss_sum * loss_scale).backward()  # type: ignore[no-untyped-call]
        return BatchSums.of_tokens(batch, losses_N, is_correct_N)

    @torch.no_grad()
    def evaluate(self, batch: PackedBatch) -> BatchSums:
        losses_N, is_correct_N = _token_losses(self.base, batch, self._adapter)
        return BatchSums.of_tokens(batch, losses_N, is_correct_N)


class DpoObjective:
    """DPO loss of every pair (losses.py).

    The reference never changes. It is the base model without an adapter, or, if training continues an earlier adapter,
    the base model with a frozen copy of that adapter.
    """

    def __init__(self, base: FrozenBase, adapter: LoraAdapter, beta: float, reference: LoraAdapter | None) -> None:
        self.base = base
        self._adapter = adapter
        self._beta = beta
        self._reference = reference

    def forward_backward(self, batch: PackedBatch, loss_scale: float = 1.0) -> BatchSums:
        reference_N = self._reference_losses(batch)
        hidden_N_D = _hidden_states(self.base, batch, self._adapter)
        head_V_D = self.base.head_with(self._adapter)
        with torch.no_grad():  # the weight of a token depends on the losses of its whole pair
            losses_N = _cross_entropy(self.base, hidden_N_D.detach(), head_V_D, batch)[1]
        pairs = dpo_loss(_pairs_of(batch), self._beta, losses_N, reference_N)
        loss_sum, _, is_correct_N = _cross_entropy(self.base, hidden_N_D, head_V_D, batch, pairs.weights_N)
        (loss_sum * loss_scale).backward()  # type: ignore[no-untyped-call]
        return BatchSums.of_pairs(batch, pairs, is_correct_N)

    @torch.no_grad()
    def evaluate(self, batch: PackedBatch) -> BatchSums:
        reference_N = self._reference_losses(batch)
        losses_N, is_correct_N = _token_losses(self.base, batch, self._adapter)
        return BatchSums.of_pairs(batch, dpo_loss(_pairs_of(batch), self._beta, losses_N, reference_N), is_correct_N)

    @torch.no_grad()
    def _reference_losses(self, batch: PackedBatch) -> torch.Tensor:
        return _token_losses(self.base, batch, self._reference)[0]


def _hidden_states(base: FrozenBase, batch: PackedBatch, adapter: LoraAdapter | None) -> torch.Tensor:
    """Return the hidden states (N x D) that predict a labelled token; the head needs no others."""
    return hidden_states(base, batch, adapter).index_select(0, batch.logit_positions_N)


def _token_losses(
    base: FrozenBase, batch: PackedBatch, adapter: LoraAdapter | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses_N and is_correct_N of the model with `adapter`; None is the base model."""
    hidden_N_D = _hidden_states(base, batch, adapter)
    head_V_D = base.head_with(adapter)
    return _cross_entropy(base, hidden_N_D, head_V_D, batch)[1:]


def _cross_entropy(
    base: FrozenBase,
    hidden_N_D: torch.Tensor,
    head_V_D: torch.Tensor,
    batch: PackedBatch,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sum of the losses, losses_N and is_correct_N (losses.py)."""
    return linear_cross_entropy(
        hidden_N_D, head_V_D, batch.targets_N, weights_N, base.logit_scaling, base.kernels.loss_chunk_tokens
    )


def _pairs_of(batch: PackedBatch) -> Pairs:
    assert batch.pairs is not None, "a dataset for DPO has pairs"
    return batch.pairs
