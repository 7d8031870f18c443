"""Early stopping: the best validation so far, its adapter weights, and the validations since the loss last fell.

Every snapshot stores this state with the weights, so that a resumed run has the same result to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from app.domain.jobs.spec import EarlyStopping
from worker.trainer.adapter.lora import LoraAdapter

Metrics = dict[str, float | None]
TENSOR_PREFIX = "best/"  # of the weights' names in a snapshot


@dataclass
class BestValidation:
    """The validation with the lowest loss; the earliest of several with an equal loss.

    Losses are those of the complete validation file: per labelled token, or per example.
    """

    step: int | None = None  # with the lowest loss; None before the first validation
    loss: float = math.inf
    metrics: Metrics = field(default_factory=dict)  # of that step
    trained_tokens: int = 0  # until that step
    reference: float = math.inf  # a loss counts as a fall if it is below this by more than the threshold
    validations_without_fall: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # weights of that step, if it may be promoted

    def update(self, step: int, loss: float, metrics: Metrics, trained_tokens: int, threshold: float) -> bool:
        """Add the result of a validation; return whether it is the best so far. A loss of NaN never is."""
        if loss < self.reference - threshold:
            self.reference, self.validations_without_fall = loss, 0
        else:
            self.validations_without_fall += 1
        if not loss < self.loss:
            return False
        self.step, self.loss, self.metrics, self.trained_tokens = step, loss, dict(metrics), trained_tokens
        return True

    def copy_weights(self, adapter: LoraAdapter) -> None:
        """Copy the weights, because the next optimizer step changes them in place."""
        self.tensors = {name: tensor.detach().cpu().clone() for name, tensor in adapter.named_parameters().items()}

    def should_stop(self, early_stopping: EarlyStopping | None) -> bool:
        return early_stopping is not None and self.validations_without_fall >= early_stopping.patience

    def as_dict(self) -> dict[str, Any]:
        """Return all fields except the tensors, for a manifest; an infinite loss becomes None."""
        return {key: None if value == math.inf else value for key, value in vars(self).items() if key != "tensors"}

    @classmethod
    def from_dict(cls, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> BestValidation:
        losses = {key: math.inf for key in ("loss", "reference") if values.get(key) is None}
        weights = {
            name.removeprefix(TENSOR_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(TENSOR_PREFIX)
        }
        return cls(**{**values, **losses, "tensors": weights})

    @contextmanager
    def weights_in_place(self, adapter: LoraAdapter) -> Iterator[None]:
        """Load the best step's weights into the adapter, and at the end the current ones, which a snapshot may need."""
        parameters = adapter.named_parameters()
        current = {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}
        _copy_into(parameters, self.tensors)
        try:
            yield
        finally:
            _copy_into(parameters, current)


@torch.no_grad()
def _copy_into(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
