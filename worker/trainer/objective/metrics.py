"""Metrics of a step or of a validation, as named sums over its packed batches.

The sums stay on the device until they are read, because each read waits for the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.trainer.data.batch import PackedBatch

Sums = dict[str, tuple[torch.Tensor, torch.Tensor | int]]  # by metric: the sum of its values, and their number


@dataclass(frozen=True)
class BatchSums:
    """The contribution of one packed batch to the metrics of a step."""

    tokens: int
    labelled_tokens: int
    terms: int  # of the loss: labelled tokens or examples
    sums: Sums

    @classmethod
    def of_tokens(cls, batch: PackedBatch, losses_N: torch.Tensor, is_correct_N: torch.Tensor) -> BatchSums:
        targets = len(batch.targets_N)
        loss, correct = losses_N.sum(dtype=torch.float64), is_correct_N.sum()
        sums: Sums = {"loss": (loss, targets), "mean_token_accuracy": (correct, targets)}
        return cls(len(batch.tokens_T), targets, targets, sums)

    @classmethod
    def of_examples(cls, batch: PackedBatch, losses_E: torch.Tensor, metrics: dict[str, torch.Tensor]) -> BatchSums:
        """A metric is NaN for the examples that have none."""
        sums: Sums = {"loss": (losses_E.sum(), len(losses_E))}
        sums |= {name: (values_E.nansum(), (~values_E.isnan()).sum()) for name, values_E in metrics.items()}
        return cls(len(batch.tokens_T), len(batch.targets_N), len(losses_E), sums)


class StepMetrics:
    """Metrics of a step or a validation: the loss and the metrics `names`, as means."""

    def __init__(self, device: torch.device, names: Sequence[str]) -> None:
        self.tokens = 0  # processed tokens, without those of the reference's forward
        self.labelled_tokens = 0
        self.denominator = 0  # of the summed losses and gradients: their terms
        self._names = ("loss", *names)
        self._sums = torch.zeros(len(self._names), 2, dtype=torch.float64, device=device)  # of values, and their number

    def add(self, batch: BatchSums) -> None:
        self.tokens += batch.tokens
        self.labelled_tokens += batch.labelled_tokens
        self.denominator += batch.terms
        for name, total_2 in zip(self._names, self._sums, strict=True):
            for part, total in zip(batch.sums[name], total_2, strict=True):
                total += part

    def sums(self) -> torch.Tensor:
        """Return all sums as one float64 tensor, which can be added over processes; exact up to 2^53."""
        counts = self._sums.new_tensor([self.tokens, self.labelled_tokens, self.denominator])
        return torch.cat([counts, self._sums.flatten()])

    def set_sums(self, sums: torch.Tensor) -> None:
        """Replace the sums by those that `sums()` returned, added over processes."""
        self.tokens, self.labelled_tokens, self.denominator = (int(count) for count in sums[:3])
        self._sums = sums[3:].view_as(self._sums)

    @property
    def loss(self) -> float:
        """Return the mean loss in nats: per labelled token, or per example."""
        return self.mean("loss")

    def mean(self, name: str) -> float:
        """Return the mean of a metric; NaN without a value."""
        total, count = self._sums[self._names.index(name)].tolist()
        return float(total / count) if count else math.nan

    def metrics(self, scope: str) -> dict[str, float | None]:
        """Return the metrics by name, with OpenAI's names for tokens; `scope` is train, valid or full_valid.

        A value that is not finite becomes None, because JSON cannot represent it.
        """
        means = {name: self.mean(name) for name in self._names}
        return {f"{scope}_{name}": mean if math.isfinite(mean) else None for name, mean in means.items()}
