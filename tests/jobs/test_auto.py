"""What "auto" gives, number by number. Why: docs/how-it-works/decisions/parameters.md."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.jobs.definitions import ResolutionContext
from app.domain.jobs.parameters import auto_batch_size, auto_epochs, auto_learning_rate, filling_batch_size
from app.domain.jobs.spec import LoraSpec
from tests.jobs.test_resolve import ENTRY


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
    ("layers", "parameters", "n_examples", "example_bytes", "gpus", "batch_size"),
    [
        (28, 0.6e9, 100_000, 800, 1, 41),  # of 8,000 tokens
        (28, 0.6e9, 100_000, 800, 2, 81),
        (28, 0.6e9, 10_003, 280, 1, 20),  # 1,000 steps remain
        (28, 0.6e9, 2_000, 280, 1, 6),  # less than the 8 of the other rule
        (32, 8e9, 100_000, 800, 1, 4),
        (28, 0.6e9, 10_000_000, 1, 1, 256),  # the largest batch of a request
        (28, 0.6e9, 100_000, 800, 0, 0),  # no GPU
        (0, 0.6e9, 100_000, 800, 1, 0),  # an entry without layers
    ],
)
def test_a_batch_fills_the_gpus_of_a_job(
    layers: int, parameters: float, n_examples: int, example_bytes: int, gpus: int, batch_size: int
) -> None:
    entry = ENTRY.model_copy(update={"decoder_layers": layers, "parameters": int(parameters)})
    context = ResolutionContext(entry, n_examples, file_bytes=n_examples * example_bytes, gpus=gpus)
    assert filling_batch_size(context, auto_epochs(n_examples)) == batch_size


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
