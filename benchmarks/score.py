"""Held-out quality of a saved adapter, example by example, without generating a token.

The answer is fed in, and every token of it is compared with the likeliest one. Where all of them are, greedy
decoding would have written exactly this answer: each prefix it would have stood on is the one that was fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from app.domain.jobs.spec import RunSpec
from app.system.artifact_directory import ADAPTER_WEIGHTS
from worker.trainer.adapter.lora import LoraAdapter, make_adapter
from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.model.base_model import FrozenBase, hidden_states
from worker.trainer.objective.losses import linear_cross_entropy

ROW_TOKENS = 2048


@dataclass(frozen=True)
class Score:
    """Scores per example, in the order of the file. An adapter whose training failed has no score."""

    nats: tuple[float, ...]  # summed over the example's labelled tokens
    tokens: tuple[int, ...]  # labelled ones
    exact: tuple[bool, ...]

    @property
    def loss(self) -> float:
        """Nats per labelled token."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def accuracy(self) -> float:
        """The share of examples whose answer is correct in every token."""
        return sum(self.exact) / len(self.exact)


def load_adapter(base: FrozenBase, run: RunSpec, directory: Path) -> LoraAdapter:
    """Return an adapter for the base's layers with the saved A and B."""
    adapter = make_adapter(run.lora, run.seed, base.layers, base.kernels)
    saved = load_file(directory / ADAPTER_WEIGHTS, device=str(base.device))
    for name, parameter in adapter.named_parameters().items():
        parameter.data.copy_(saved[name])
    return adapter


@torch.no_grad()
def score(base: FrozenBase, adapter: LoraAdapter, dataset: TokenizedDataset) -> Score:
    """Score one document for each example."""
    documents = dataset.documents_of(range(len(dataset)))
    labelled = [sum(dataset.tokens_and_labels(document)[1]) for document in documents]
    losses, correct = [], []
    for batch in pack_batches(dataset, documents, ROW_TOKENS):
        batch = batch.to(base.device)
        hidden_N_D = hidden_states(base, batch, adapter)[batch.logit_positions_N]
        _, losses_N, is_correct_N = linear_cross_entropy(hidden_N_D, base.head_V_D, batch.targets_N)
        losses.append(losses_N.cpu())
        correct.append(is_correct_N.cpu())
    return Score(
        nats=tuple(float(part.sum()) for part in torch.cat(losses).split(labelled)),
        tokens=tuple(labelled),
        exact=tuple(bool(part.all()) for part in torch.cat(correct).split(labelled)),
    )
