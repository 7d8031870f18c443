from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch

from app.domain.jobs.spec import EarlyStopping
from tests.trainer.helpers import CPU_KERNELS
from worker.trainer.adapter.lora import LoraAdapter, LoraWeights
from worker.trainer.validation.early_stopping import TENSOR_PREFIX, BestValidation


def after(losses: list[float], threshold: float = 0.0) -> BestValidation:
    """Return the state after validations with these losses, one after each step."""
    best = BestValidation()
    for step, loss in enumerate(losses, start=1):
        best.update(step, loss, {"full_valid_loss": loss}, 100 * step, threshold)
    return best


def stopped_after(losses: list[float], patience: int, threshold: float = 0.0) -> int | None:
    return next(
        (
            step
            for step in range(1, len(losses) + 1)
            if after(losses[:step], threshold).should_stop(EarlyStopping(patience=patience, threshold=threshold))
        ),
        None,
    )


class TestUpdate:
    def test_the_lowest_loss_is_the_best_and_the_earliest_of_equal_ones(self) -> None:
        best = after([3.0, 2.0, 2.5, 2.0])
        assert (best.step, best.loss, best.metrics, best.trained_tokens) == (2, 2.0, {"full_valid_loss": 2.0}, 200)

    def test_a_decrease_within_the_threshold_is_the_best_but_does_not_count_as_a_fall(self) -> None:
        best = after([3.0, 2.95, 2.94], threshold=0.1)
        assert (best.step, best.validations_without_fall) == (3, 2)

    @pytest.mark.parametrize("broken", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite_is_never_the_best(self, broken: float) -> None:
        assert after([broken]).step is None
        best = after([3.0, broken])
        assert (best.step, best.validations_without_fall) == (1, 1)


class TestShouldStop:
    @pytest.mark.parametrize(
        ("losses", "patience", "threshold", "step"),
        [
            ([3.0, 2.0, 1.0], 1, 0.0, None),
            ([3.0, 3.0], 1, 0.0, 2),
            ([3.0, 3.1, 2.9, 3.0, 3.0], 2, 0.0, 5),
            ([3.0, 2.95, 2.91, 2.5], 2, 0.1, 3),
            ([3.0, 2.95, 2.89, 2.85], 2, 0.1, None),
        ],
    )
    def test_after_patience_validations_without_a_fall(
        self, losses: list[float], patience: int, threshold: float, step: int | None
    ) -> None:
        assert stopped_after(losses, patience, threshold) == step


class TestTensors:
    def adapter(self, value: float) -> LoraAdapter:
        weights = LoraWeights(*(torch.nn.Parameter(torch.full(shape, value)) for shape in ((2, 3), (4, 2))), scale=1.0)
        return LoraAdapter(0.0, torch.Generator(), {"layer": weights}, CPU_KERNELS)

    def test_weights_in_place_restores_the_current_weights_even_after_an_error(self) -> None:
        best, adapter = BestValidation(), self.adapter(2.0)
        best.copy_weights(self.adapter(1.0))
        with contextlib.suppress(KeyError), best.weights_in_place(adapter):
            assert all(parameter.unique().item() == 1.0 for parameter in adapter.parameters())
            raise KeyError
        assert all(parameter.unique().item() == 2.0 for parameter in adapter.parameters())

    @pytest.mark.parametrize("losses", [[], [3.0], [math.nan], [3.0, 2.0, 2.5]])
    def test_a_snapshot_restores_every_field(self, losses: list[float]) -> None:
        best = after(losses)
        best.copy_weights(self.adapter(1.0))
        text = json.dumps(best.as_dict(), allow_nan=False)
        tensors = {f"{TENSOR_PREFIX}{name}": tensor for name, tensor in best.tensors.items()} | {
            "adapter/x": torch.ones(1)
        }
        restored = BestValidation.from_dict(json.loads(text), tensors)
        assert restored.as_dict() == best.as_dict()
        assert (restored.loss, restored.reference) == (best.loss, best.reference)
        assert restored.tensors.keys() == best.tensors.keys()
