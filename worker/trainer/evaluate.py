"""Validation: the loss over a whole file, with the adapter on, dropout off, nothing learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worker.trainer.batch import Corpus, Share, rows
from worker.trainer.emit import Pulse
from worker.trainer.loss import head_loss
from worker.trainer.model import Base, hidden_states


@dataclass(frozen=True)
class Validation:
    loss: float  # nats per labelled token
    accuracy: float  # share of labelled tokens that were the likeliest


@torch.no_grad()
def evaluate(base: Base, run_id: str, corpus: Corpus, token_budget: int, pulse: Pulse) -> Validation:
    """Every document once, in the file's order; one division by labelled tokens at the end."""
    loss_sum = torch.zeros((), dtype=torch.float64, device=base.device)
    hits = torch.zeros((), dtype=torch.int64, device=base.device)
    documents = [document for example in range(len(corpus)) for document in corpus.documents(example)]
    for row in rows([Share(run_id, corpus, documents)], token_budget):
        pulse("measuring the validation loss")
        row = row.to(base.device)
        hidden_T_D = hidden_states(base, row)
        _, losses_N, hits_N = head_loss(hidden_T_D[row.predictors_N], base.head_of(row), row.targets_N)
        loss_sum += losses_N.sum(dtype=torch.float64)
        hits += hits_N.sum()
    return Validation(loss_sum.item() / corpus.labelled_tokens, hits.item() / corpus.labelled_tokens)
