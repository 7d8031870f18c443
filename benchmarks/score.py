"""Held-out quality of a saved adapter, example by example, without generating a token.

The answer is fed in, and every token of it is compared with the likeliest one. Where all of them are, greedy
decoding would have written exactly this answer: each prefix it would have stood on is the one that was fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from app.domain.artifacts import ADAPTER_WEIGHTS
from app.domain.spec import RunSpec
from worker.trainer.batch import Corpus, Share, rows
from worker.trainer.lora import make_adapter
from worker.trainer.loss import head_loss
from worker.trainer.model import Base, hidden_states

ROW_TOKENS = 2048


@dataclass(frozen=True)
class Score:
    """By example, in the file's order. An adapter that did not survive its training has no score at all."""

    nats: tuple[float, ...]  # summed over the example's labelled tokens
    tokens: tuple[int, ...]  # labelled ones
    exact: tuple[bool, ...]

    @property
    def loss(self) -> float:
        """Nats per labelled token."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def accuracy(self) -> float:
        """The share of examples whose whole answer is right."""
        return sum(self.exact) / len(self.exact)


def load_adapter(base: Base, run: RunSpec, directory: Path) -> None:
    """Put the saved A and B where the base's layers look for those of this run."""
    adapter = make_adapter(run.run_id, run.lora, run.seed, base.layers, base.device)
    saved = load_file(directory / ADAPTER_WEIGHTS, device=str(base.device))
    for name, parameter in adapter.named_parameters().items():
        parameter.data.copy_(saved[name])
    base.routing.adapters[run.run_id] = adapter


@torch.no_grad()
def score(base: Base, run_id: str, corpus: Corpus) -> Score:
    """One document an example; the row of each holds a few of them."""
    documents = [document for example in range(len(corpus)) for document in corpus.documents(example)]
    labelled = [sum(corpus.slice(document)[1]) for document in documents]
    losses, hits = [], []
    for row in rows([Share(run_id, corpus, documents)], ROW_TOKENS):
        row = row.to(base.device)
        hidden_T_D = hidden_states(base, row)
        _, losses_N, hits_N = head_loss(hidden_T_D[row.predictors_N], base.head_V_D, row.targets_N)
        losses.append(losses_N.cpu())
        hits.append(hits_N.cpu())
    return Score(
        nats=tuple(float(part.sum()) for part in torch.cat(losses).split(labelled)),
        tokens=tuple(labelled),
        exact=tuple(bool(part.all()) for part in torch.cat(hits).split(labelled)),
    )
