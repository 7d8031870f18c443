"""What "auto" gives, number by number. Why: docs/decisions/parameters.md."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.jobs.parameters import auto_batch_size, auto_epochs, auto_learning_rate
from app.domain.jobs.spec import LoraSpec


def lora(**changes: Any) -> LoraSpec:
    return LoraSpec.model_validate({"r": 16, "alpha": 32, "target_modules": ("q_proj",)} | changes)


def test_epochs_follow_openais_rule() -> None:
    wanted = {
        1: 25, 4: 25, 5: 20, 10: 10, 33: 3, 34: 3, 100: 3, 8333: 3, 8334: 2, 12_500: 2, 12_501: 1, 100_000: 1,
    }  # fmt: skip
    assert {n_examples: auto_epochs(n_examples) for n_examples in wanted} == wanted


def test_a_batch_leaves_an_epoch_its_steps_and_stays_small() -> None:
    wanted = {1: 1, 63: 1, 64: 2, 160: 5, 256: 8, 500: 8, 100_000: 8}
    assert {n_examples: auto_batch_size(n_examples, most=8) for n_examples in wanted} == wanted
    assert auto_batch_size(10_000, most=4) == 4


@pytest.mark.parametrize(
    ("steps", "steps_per_epoch", "rate"),
    [
        (1, 1, 1.6e-3),
        (88, 88, 1.2e-3),
        (1200, 1200, 1e-3),
        (1200, 2400, 1e-3),  # half an epoch repeats nothing
        (96, 32, 1.1e-3),
        (750, 250, 9.6e-4),
        (9000, 9000, 8.8e-4),
        (1_000_000, 1_000_000, 6.6e-4),
    ],
)
def test_a_longer_or_repetitive_run_gets_a_lower_rate(steps: int, steps_per_epoch: int, rate: float) -> None:
    assert auto_learning_rate(1e-3, steps, steps_per_epoch, lora()) == rate


@given(st.integers(1, 1_000_000), st.integers(1, 10_000))
def test_one_more_step_never_raises_the_rate(steps: int, steps_per_epoch: int) -> None:
    now, later = (auto_learning_rate(1e-3, count, steps_per_epoch, lora()) for count in (steps, steps + 1))
    assert later <= now


@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        ({"r": 64, "alpha": 32}, 1e-3),
        ({"r": 64, "alpha": 128}, 2.5e-4),
        ({"r": 16, "alpha": 64}, 5e-4),
        ({"r": 16, "alpha": 32, "use_rslora": True}, 2.5e-4),
        ({"r": 8, "alpha": 16}, 1e-3),
        ({"r": 1, "alpha": 2}, 1e-3),
    ],
)
def test_an_adapter_that_moves_more_in_a_step_gets_a_lower_rate(shape: dict[str, Any], rate: float) -> None:
    assert auto_learning_rate(1e-3, 1200, 1200, lora(**shape)) == rate
