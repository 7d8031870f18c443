"""Validation: the loss over a whole file, with the adapter on, dropout off, nothing learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.domain.spec import RunSpec
from app.domain.states import Reason
from worker.trainer.batch import Corpus, Share, rows
from worker.trainer.emit import Pulse
from worker.trainer.failures import Failure
from worker.trainer.loss import head_loss
from worker.trainer.model import Base, hidden_states


@dataclass(frozen=True)
class Validation:
    loss: float  # nats per labelled token
    accuracy: float  # share of labelled tokens that were the likeliest


def check_validation(run: RunSpec) -> None:
    """Raises Failure(INVALID_SPEC) for a knob that needs a validation file where there is none."""
    knobs = run.hyperparameters
    asked = {"eval_steps": knobs.eval_steps, "early_stopping": knobs.early_stopping, "promote_best": knobs.promote_best}
    for name in (name for name, value in asked.items() if value and run.validation_file is None):
        text = f"hyperparameters.{name} needs a validation file; name one, or leave the knob out."
        raise Failure(Reason.INVALID_SPEC, text, f"hyperparameters.{name}")


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
        _, losses_N, hits_N = head_loss(hidden_T_D[row.predictors_N], base.head_V_D, row.targets_N)
        loss_sum += losses_N.sum(dtype=torch.float64)
        hits += hits_N.sum()
    return Validation(loss_sum.item() / corpus.labelled_tokens, hits.item() / corpus.labelled_tokens)
