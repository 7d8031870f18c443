"""Validation: the metrics of a complete file, with the adapter, without dropout and gradients."""

from __future__ import annotations

from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.objective.objective import Objective
from worker.trainer.runtime.records import Keepalive


def evaluate(objective: Objective, dataset: TokenizedDataset, row_tokens: int, keepalive: Keepalive) -> StepMetrics:
    """Evaluate every document once, in the order of the file."""
    metrics, device = StepMetrics(objective.base.device), objective.base.device
    for batch in pack_batches(dataset, dataset.documents_of(range(len(dataset))), row_tokens):
        keepalive("measuring the validation loss")
        metrics.add(objective.evaluate(batch.to(device)))
    return metrics
