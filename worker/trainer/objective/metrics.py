"""Metrics of a step or of a validation, as named sums over its packed batches.

The sums stay on the device until they are read, because each read waits for the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.trainer.data.batch import PackedBatch

# ruff: noqa: N815  shapes stand in names


@dataclass(frozen=True)
class BatchLosses:
    """The losses of one packed batch and its other metrics by name: a value of each labelled token, or of each example.

    A metric is NaN for the examples that have none.
    """

    batch: PackedBatch
    losses_E: torch.Tensor
    metrics: dict[str, torch.Tensor]


class StepMetrics:
    """Metrics of a step or a validation: the loss and the metrics `names`, as means."""

    def __init__(self, device: torch.device, names: Sequence[str]) -> None:
        self.tokens = 0  # processed tokens, without those of the reference's forward
        self.labelled_tokens = 0
        self.denominator = 0  # of the summed losses and gradients: their number
        self._names = names
        self._loss_sum = torch.zeros(1, dtype=torch.float64, device=device)
        self._sums = torch.zeros(len(names), 2, dtype=torch.float64, device=device)  # of values, and their number

    def add(self, losses: BatchLosses) -> None:
        self.tokens += len(losses.batch.tokens_T)
        self.labelled_tokens += len(losses.batch.targets_N)
        self.denominator += len(losses.losses_E)
        self._loss_sum += losses.losses_E.sum(dtype=torch.float64)
        for name, sums_2 in zip(self._names, self._sums, strict=True):
            values_E = losses.metrics[name]
            sums_2 += torch.stack((values_E.nansum(), (~values_E.isnan()).sum()))

    def sums(self) -> torch.Tensor:
        """Return all sums as one float64 tensor, which can be added over processes; exact up to 2^53."""
        counts = self._sums.new_tensor([self.tokens, self.labelled_tokens, self.denominator])
        return torch.cat([counts, self._loss_sum, self._sums.flatten()])

    def set_sums(self, sums: torch.Tensor) -> None:
        """Replace the sums by those that `sums()` returned, added over processes."""
        self.tokens, self.labelled_tokens, self.denominator = (int(count) for count in sums[:3])
        self._loss_sum, self._sums = sums[3:4], sums[4:].view_as(self._sums)

    @property
    def loss(self) -> float:
        """Return the mean loss in nats: per labelled token, or per example."""
        return self._loss_sum.item() / self.denominator

    def mean(self, name: str) -> float:
        """Return the mean of a metric; NaN without a value."""
        total, count = self._sums[self._names.index(name)].tolist()
        return float(total / count) if count else math.nan

    def metrics(self, scope: str) -> dict[str, float | None]:
        """Return the metrics by name, with OpenAI's names for tokens; `scope` is train, valid or full_valid.

        A value that is not finite becomes None, because JSON cannot represent it.
        """
        means = {"loss": self.loss} | {name: self.mean(name) for name in self._names}
        return {f"{scope}_{name}": mean if math.isfinite(mean) else None for name, mean in means.items()}
