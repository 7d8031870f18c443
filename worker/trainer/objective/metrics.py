"""Metrics of a step or of a validation, as sums over its packed batches: loss and accuracy of tokens or of pairs.

The sums stay on the device until they are read, because each read waits for the GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from worker.trainer.data.batch import PackedBatch
from worker.trainer.objective.losses import PairLosses


@dataclass(frozen=True)
class BatchSums:
    """The contribution of one packed batch to the metrics of a step. Loss sums are float64, in nats."""

    tokens: int
    labelled_tokens: int
    loss_sum: torch.Tensor
    correct: torch.Tensor  # int64: labelled tokens that were the most likely token
    pairs: int = 0
    margin_sum: torch.Tensor | None = None  # with pairs: float64
    preferred: torch.Tensor | None = None  # with pairs: int64, pairs with a positive margin

    @classmethod
    def of_tokens(cls, batch: PackedBatch, losses_N: torch.Tensor, is_correct_N: torch.Tensor) -> BatchSums:
        loss_sum = losses_N.sum(dtype=torch.float64)
        return cls(len(batch.tokens_T), len(batch.targets_N), loss_sum, is_correct_N.sum())

    @classmethod
    def of_pairs(cls, batch: PackedBatch, pairs: PairLosses, is_correct_N: torch.Tensor) -> BatchSums:
        return cls(
            len(batch.tokens_T),
            len(batch.targets_N),
            pairs.losses_P.sum(),
            is_correct_N.sum(),
            len(pairs.losses_P),
            pairs.margins_P.sum(),
            (pairs.margins_P > 0).sum(),
        )


class StepMetrics:
    """Metrics of a step or a validation: means over labelled tokens, with DPO over pairs."""

    def __init__(self, device: torch.device) -> None:
        self.tokens = 0  # processed tokens, without those of DPO's reference forward
        self.labelled_tokens = 0
        self.pairs = 0
        self._loss_sum, self._margin_sum = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self._correct, self._preferred = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))

    def add(self, sums: BatchSums) -> None:
        self.tokens += sums.tokens
        self.labelled_tokens += sums.labelled_tokens
        self.pairs += sums.pairs
        self._loss_sum += sums.loss_sum
        self._correct += sums.correct
        if sums.margin_sum is not None and sums.preferred is not None:
            self._margin_sum += sums.margin_sum
            self._preferred += sums.preferred

    def sums(self) -> torch.Tensor:
        """Return all sums as one float64 tensor, which can be added over processes; exact up to 2^53."""
        counts = torch.tensor([self.tokens, self.labelled_tokens, self.pairs], device=self._correct.device)
        measured = (self._loss_sum, self._margin_sum, self._correct, self._preferred)
        return torch.cat([counts.double(), torch.stack([value.double() for value in measured])])

    def set_sums(self, sums: torch.Tensor) -> None:
        """Replace the sums by those that `sums()` returned, added over processes."""
        self.tokens, self.labelled_tokens, self.pairs = (int(count) for count in sums[:3])
        self._loss_sum, self._margin_sum = sums[3], sums[4]
        self._correct, self._preferred = sums[5].long(), sums[6].long()

    @property
    def denominator(self) -> int:
        """Return the divisor of the summed losses and gradients: pairs, or labelled tokens."""
        return self.pairs or self.labelled_tokens

    @property
    def loss(self) -> float:
        """Return the mean loss: nats per labelled token, or DPO loss per pair."""
        return self._loss_sum.item() / self.denominator

    @property
    def accuracy(self) -> float | None:
        """Return the share of labelled tokens that were the most likely token; None with DPO."""
        return None if self.pairs else self._correct.item() / self.labelled_tokens

    @property
    def reward_accuracy(self) -> float | None:
        """Return the share of pairs with a positive margin; None without pairs."""
        return self._preferred.item() / self.pairs if self.pairs else None

    @property
    def reward_margin(self) -> float | None:
        """Return the mean margin of the pairs (beta times nats, as in losses.py); None without pairs."""
        return self._margin_sum.item() / self.pairs if self.pairs else None

    def metrics(self, scope: str) -> dict[str, float | None]:
        """Return the metrics by name, with OpenAI's names for tokens; `scope` is train, valid or full_valid.

        A value that is not finite becomes None, because JSON cannot represent it.
        """
        of_tokens = {"loss": self.loss, "mean_token_accuracy": self.accuracy}
        of_pairs = {"loss": self.loss, "reward_accuracy": self.reward_accuracy, "reward_margin": self.reward_margin}
        values = of_pairs if self.pairs else of_tokens
        return {f"{scope}_{name}": value if math.isfinite(value or 0) else None for name, value in values.items()}
