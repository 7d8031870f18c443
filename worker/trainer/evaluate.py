"""Validation: the loss over a whole file, with the adapter on, dropout off, nothing learned."""

from __future__ import annotations

import torch

from worker.trainer.batch import Corpus, Share, rows
from worker.trainer.emit import Pulse
from worker.trainer.loss import head_loss
from worker.trainer.model import Base, hidden_states
from worker.trainer.preference import compare_losses, reference_losses
from worker.trainer.tally import Tally

Validation = Tally


@torch.no_grad()
def evaluate(
    base: Base, run_id: str, corpus: Corpus, token_budget: int, pulse: Pulse, beta: float | None = None
) -> Validation:
    """Every document once, in the file's order; one division at the end. `beta` is DPO's, for a corpus of pairs."""
    validation = Validation(base.device)
    documents = [document for example in range(len(corpus)) for document in corpus.documents(example)]
    for row in rows([Share(run_id, corpus, documents, beta=beta)], token_budget):
        pulse("measuring the validation loss")
        row = row.to(base.device)
        reference_N = reference_losses(base, row)
        hidden_T_D = hidden_states(base, row)
        _, losses_N, hits_N = head_loss(hidden_T_D[row.predictors_N], base.head_of(row), row.targets_N)
        pairs = compare_losses(row.pairs, losses_N, reference_N) if row.pairs and reference_N is not None else None
        for segment in row.segments:
            validation.add(segment, losses_N, hits_N, pairs)
    return validation
