from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer import plain_peft
from tests.trainer.helpers import (
    FLOAT32,
    load_tiny_base,
    make_one_step,
    make_spec,
    prepare,
)
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.training.state import Run


def started(tiny: Path, examples: Path, **changes: Any) -> tuple[FrozenBase, Run]:
    base = load_tiny_base(tiny)
    return base, prepare(make_spec(tiny, examples, **changes), base, Path("unused"))


class TestOptimizerStep:
    def test_the_base_stays_unchanged_to_the_bit(self, tiny: Path, examples: Path) -> None:
        base, run = started(tiny, examples)
        before = [parameter.data.clone() for parameter in base.model.parameters()]
        scales = [layer.base.weight.quant_state.absmax.clone() for layer in base.layers.values()]
        start = [parameter.data.clone() for parameter in run.parameters]
        for _ in range(3):
            make_one_step(base, run)
        assert all(torch.equal(a, b) for a, b in zip(before, base.model.parameters(), strict=True))
        after = [layer.base.weight.quant_state.absmax for layer in base.layers.values()]
        assert all(torch.equal(a, b) for a, b in zip(scales, after, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(start, run.parameters, strict=True))

    def test_it_counts_every_token_of_the_examples_and_no_others(self, tiny: Path, examples: Path) -> None:
        base, run = started(tiny, examples, batch_size=4)
        steps = [make_one_step(base, run) for _ in range(3)]
        assert run.trained_tokens == run.dataset.tokens == sum(step.tokens for step in steps)
        assert sum(step.labelled_tokens for step in steps) == run.dataset.labelled_tokens

    def test_another_seed_gives_another_adapter(self, tiny: Path, examples: Path) -> None:
        one, other = (started(tiny, examples, seed=seed)[1].parameters[0] for seed in (1, 2))
        assert not torch.equal(one, other)

    @pytest.mark.parametrize(
        "changes",
        [{"target_modules": ["q_proj", "v_proj"]}, {"weight_decay": 0.1, "warmup_ratio": 0.5, "max_grad_norm": 0.01}],
    )
    def test_a_run_equals_a_plain_peft_loop_on_the_same_batches(
        self, tiny: Path, examples: Path, changes: dict[str, Any]
    ) -> None:
        plain_peft.compare(tiny, examples, FLOAT32, 4, **changes)

    def test_a_loss_that_is_not_a_number_leaves_the_run_unchanged(self, tiny: Path, examples: Path) -> None:
        base, run = started(tiny, examples)
        make_one_step(base, run)
        with torch.no_grad():
            run.parameters[1][0, 0] = math.nan
        before = [parameter.data.clone() for parameter in run.parameters]
        step = make_one_step(base, run)
        assert not step.is_finite
        assert run.step == 1
        assert all(torch.equal(a, b) for a, b in zip(before[2:], run.parameters[2:], strict=True))
        assert all(parameter.grad is None for parameter in run.parameters)
