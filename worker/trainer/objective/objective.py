"""The objectives: `SupervisedObjective` and `SequenceObjective`, chosen once before the first step.

An objective runs forward and backward of one packed batch (training), or the forward alone (validation). Losses and
gradients are sums, so they can be added over batches of any size; the optimizer step divides them, once.

Letters: T tokens of a batch, N labelled tokens of a batch, S its sequences, E its examples, D the hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from app.domain.jobs.spec import RunSpec
from app.domain.methods import METHODS
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.data.mismatched import mismatched
from worker.trainer.distributed import parallel
from worker.trainer.model.base_model import FrozenBase, hidden_states
from worker.trainer.objective.losses import linear_cross_entropy
from worker.trainer.objective.metrics import BatchLosses
from worker.trainer.objective.sequence_losses import SEQUENCE_LOSSES, SequenceSums, losses_and_weights
from worker.trainer.runtime.records import Keepalive


class Objective(ABC):
    metric_names: Sequence[str]

    def __init__(self, base: FrozenBase, adapter: LoraAdapter) -> None:
        self.base = base
        self._adapter = adapter

    def begin_step(  # noqa: B027  most losses need nothing
        self, dataset: TokenizedDataset, examples: Sequence[int], row_tokens: int, before_batch: Keepalive
    ) -> None:
        """Measure what the losses need of all examples of a step, or of a file that is evaluated.

        Every process calls it before its first batch.
        """

    @abstractmethod
    def forward_backward(self, batch: PackedBatch, loss_scale: float = 1.0) -> BatchLosses:
        """Run forward and backward of one batch, and add its gradients times `loss_scale` to those of the adapter."""

    @abstractmethod
    def evaluate(self, batch: PackedBatch) -> BatchLosses:
        """Run the forward of one batch without dropout and gradients."""

    def _hidden_states(self, batch: PackedBatch, adapter: LoraAdapter | None) -> torch.Tensor:
        """Return the hidden states (N x D) that predict a labelled token; the head needs no others."""
        return hidden_states(self.base, batch, adapter).index_select(0, batch.logit_positions_N)

    def _cross_entropy(
        self,
        batch: PackedBatch,
        adapter: LoraAdapter | None,
        hidden_N_D: torch.Tensor,
        weights_N: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sum of the losses, losses_N and is_correct_N (losses.py)."""
        base, head_V_D = self.base, self.base.head_with(adapter)
        return linear_cross_entropy(
            hidden_N_D, head_V_D, batch.targets_N, weights_N, base.logit_scaling, base.loss_chunk_tokens
        )

    def _token_losses(self, batch: PackedBatch, adapter: LoraAdapter | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses_N and is_correct_N of the model with `adapter`; None is the base model."""
        return self._cross_entropy(batch, adapter, self._hidden_states(batch, adapter))[1:]


class SupervisedObjective(Objective):
    """Cross entropy of every labelled token, which needs nothing of other tokens."""

    metric_names = METHODS["supervised"].metrics

    def forward_backward(self, batch: PackedBatch, loss_scale: float = 1.0) -> BatchLosses:
        hidden_N_D = self._hidden_states(batch, self._adapter)  # W x + scale * B A x in every adapted layer
        loss_sum, losses_N, is_correct_N = self._cross_entropy(batch, self._adapter, hidden_N_D)
        (loss_sum * loss_scale).backward()  # type: ignore[no-untyped-call]
        return BatchLosses(batch, losses_N, {"mean_token_accuracy": is_correct_N.double()})

    @torch.no_grad()
    def evaluate(self, batch: PackedBatch) -> BatchLosses:
        losses_N, is_correct_N = self._token_losses(batch, self._adapter)
        return BatchLosses(batch, losses_N, {"mean_token_accuracy": is_correct_N.double()})


class SequenceObjective(Objective):
    """A loss of the sums over sequences (sequence_losses.py).

    The reference never changes. It is the base model without an adapter, or, if training continues an earlier adapter,
    the base model with a frozen copy of that adapter.
    """

    def __init__(self, base: FrozenBase, adapter: LoraAdapter, spec: RunSpec, reference: LoraAdapter | None) -> None:
        super().__init__(base, adapter)
        self.metric_names = METHODS[spec.method].metrics
        self._hyperparameters = spec.hyperparameters
        self._loss = SEQUENCE_LOSSES[spec.method, spec.hyperparameters.loss_type]
        self._reference = reference
        self._step_mean = torch.ones((), dtype=torch.float64, device=base.device)  # a probe has no step

    def begin_step(
        self, dataset: TokenizedDataset, examples: Sequence[int], row_tokens: int, before_batch: Keepalive
    ) -> None:
        if self._loss.has_step_mean:
            with parallel.out_of_memory_in_all():
                total = self._own_total(dataset, examples, row_tokens, before_batch)
            self._step_mean = parallel.add(total) / len(examples)

    def forward_backward(self, batch: PackedBatch, loss_scale: float = 1.0) -> BatchLosses:
        reference_N = self._reference_losses(batch)
        hidden_N_D = self._hidden_states(batch, self._adapter)
        with torch.no_grad():  # the weight of a token depends on the losses of its whole example
            losses_N = self._cross_entropy(batch, self._adapter, hidden_N_D)[1]
        losses, weights_N = self._losses(batch, losses_N, reference_N)
        loss_sum = self._cross_entropy(batch, self._adapter, hidden_N_D, weights_N)[0]
        (loss_sum * loss_scale).backward()  # type: ignore[no-untyped-call]
        return losses

    @torch.no_grad()
    def evaluate(self, batch: PackedBatch) -> BatchLosses:
        losses_N, _ = self._token_losses(batch, self._adapter)
        return self._losses(batch, losses_N, self._reference_losses(batch))[0]

    def _losses(
        self, batch: PackedBatch, losses_N: torch.Tensor, reference_N: torch.Tensor
    ) -> tuple[BatchLosses, torch.Tensor]:
        """Return the losses of the examples, and weights_N (float32), from those of tokens."""
        sequences = batch.sequences
        assert sequences is not None, "the documents of such a dataset have roles"
        zeros_S = torch.zeros_like(sequences.tokens_S)  # float64
        logps_S, reference_S = (
            zeros_S.index_add(0, sequences.sequence_N, -each_N.double()) for each_N in (losses_N, reference_N)
        )
        sums = SequenceSums(logps_S, reference_S, sequences.tokens_S, sequences.roles_S, self._step_mean)
        losses_E, metrics, weights_S = losses_and_weights(self._loss, sums, self._hyperparameters)
        return BatchLosses(batch, losses_E, metrics), weights_S[sequences.sequence_N].float()

    @torch.no_grad()
    def _reference_losses(self, batch: PackedBatch) -> torch.Tensor:
        """Return the token losses of the reference; zeros for a loss without one."""
        if not self._loss.needs_reference:
            return torch.zeros(len(batch.targets_N), device=self.base.device)
        return self._token_losses(batch, self._reference)[0]

    @torch.no_grad()
    def _own_total(
        self, dataset: TokenizedDataset, examples: Sequence[int], row_tokens: int, before_batch: Keepalive
    ) -> torch.Tensor:
        """Return the sum over this process's examples of what `SequenceSums.step_mean` is the mean of."""
        total, own = torch.zeros_like(self._step_mean), parallel.own_examples(examples, dataset.tokens_of)
        if dataset.trains_prompts:
            preferred = [document for document in dataset.documents_of(own) if dataset.role(document) > 0]
            return total + sum(dataset.length(document) - 1 for document in preferred)
        measured = mismatched(dataset, examples, own, self._hyperparameters.context_length)
        for batch in pack_batches(measured, range(len(measured)), row_tokens):
            before_batch("measuring the reference point of the next step")
            batch = batch.to(self.base.device)
            losses_N, _ = self._token_losses(batch, self._adapter)
            total += (self._reference_losses(batch).double() - losses_N).sum()
        return total
