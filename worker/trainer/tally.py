"""Sums over the rows of a step, or of a validation: losses and hits of tokens, losses and margins of pairs.

They stay on the device until somebody asks: each look costs a wait for the GPU.
"""

from __future__ import annotations

import math

import torch

from worker.trainer.batch import Segment
from worker.trainer.preference import Comparison


class Tally:
    """One run's sums. A supervised run is counted by its labelled tokens, a DPO run by its pairs."""

    def __init__(self, device: torch.device) -> None:
        self.tokens = 0  # real tokens that went through the model, a reference's second look not counted
        self.labelled_tokens = 0
        self.pairs = 0
        self._loss_sum, self._margins = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self._hits, self._wins = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))

    def add(self, segment: Segment, losses_N: torch.Tensor, hits_N: torch.Tensor, pairs: Comparison | None) -> None:
        """Take this run's part of a row into account."""
        mine = slice(segment.first_target, segment.end_target)
        self.tokens += segment.end - segment.start
        self.labelled_tokens += segment.end_target - segment.first_target
        self._hits += hits_N[mine].sum()
        if pairs is None or segment.first_pair == segment.end_pair:
            self._loss_sum += losses_N[mine].sum(dtype=torch.float64)
            return
        ours = slice(segment.first_pair, segment.end_pair)
        self.pairs += segment.end_pair - segment.first_pair
        self._loss_sum += pairs.losses_P[ours].sum()
        self._margins += pairs.margins_P[ours].sum()
        self._wins += (pairs.margins_P[ours] > 0).sum()

    def sums(self) -> torch.Tensor:
        """What adds up over processes, as float64, which counts exactly up to 2^53."""
        counts = torch.tensor([self.tokens, self.labelled_tokens, self.pairs], device=self._hits.device)
        measured = (self._loss_sum, self._margins, self._hits, self._wins)
        return torch.cat([counts.double(), torch.stack([value.double() for value in measured])])

    def set_sums(self, sums: torch.Tensor) -> None:
        self.tokens, self.labelled_tokens, self.pairs = (int(count) for count in sums[:3])
        self._loss_sum, self._margins = sums[3], sums[4]
        self._hits, self._wins = sums[5].long(), sums[6].long()

    @property
    def denominator(self) -> int:
        """What the sum of the losses, and of the gradients, is divided by."""
        return self.pairs or self.labelled_tokens

    @property
    def loss(self) -> float:
        """Nats per labelled token, or DPO's loss per pair."""
        return self._loss_sum.item() / self.denominator

    @property
    def accuracy(self) -> float | None:
        """The share of labelled tokens that were the likeliest; nothing that DPO is after."""
        return None if self.pairs else self._hits.item() / self.labelled_tokens

    @property
    def reward_accuracy(self) -> float | None:
        """The share of pairs whose preferred answer has gained more likelihood than the other."""
        return self._wins.item() / self.pairs if self.pairs else None

    @property
    def reward_margin(self) -> float | None:
        """The mean over pairs of beta times what the preferred answer has gained in nats over the other."""
        return self._margins.item() / self.pairs if self.pairs else None

    def metrics(self, scope: str) -> dict[str, float | None]:
        """Under OpenAI's names, and ours for pairs; `scope` is train, valid or full_valid.

        None for what is not finite: a manifest is JSON, which has no word for it.
        """
        of_tokens = {"loss": self.loss, "mean_token_accuracy": self.accuracy}
        of_pairs = {"loss": self.loss, "reward_accuracy": self.reward_accuracy, "reward_margin": self.reward_margin}
        found = of_pairs if self.pairs else of_tokens
        return {f"{scope}_{name}": value if math.isfinite(value or 0) else None for name, value in found.items()}
